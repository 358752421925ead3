"""Measured arms beside the planner's laws."""

from __future__ import annotations

import json

import pytest

from experiments.pipeline_prediction import main, measured_costs, predictions
from specdec.planner import Acceptance, Branching, mirror_beside, serial


def arm(schedule, length, ms=2.0, tokens=3.0, **more):
    told = {"agreement": 0.8, "tokens_per_step": 1, "fallback": 0.0}
    return {"schedule": schedule, "length": length, "ms_per_token": ms, "tokens_per_round": tokens, **told, **more}


def test_every_arm_of_ours_is_predicted_by_its_law(tmp_path, capsys):
    costs, iid = measured_costs(), Acceptance.iid(0.8)
    arms = [
        arm("serial", 4),
        arm("Mirror E=18", 3, fallback=0.25),
        arm("plain", 0, tokens=1.0, agreement=None),
        {"schedule": "economize plain", "length": 0, "agreement": None, "ms_per_token": 9.6},
    ]
    found = [predicted for _, predicted in predictions(arms, costs)]
    expected = [
        serial(costs, iid, 4).ms / 3,
        mirror_beside(costs, iid, 3, Branching(4, 0.75, 0.5)).ms / 3,
        costs.plain,
    ]
    assert found == pytest.approx(expected)
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps({"arms": arms}))
    main([str(file)])
    printed = capsys.readouterr().out
    assert "Mirror E=18" in printed and "economize" not in printed


def test_steps_of_several_tokens_draft_faster():
    one, two = (arm("serial", 4, tokens_per_step=step) for step in (1, 2))
    slow, fast = (predicted for _, predicted in predictions([one, two], measured_costs()))
    assert fast < slow
