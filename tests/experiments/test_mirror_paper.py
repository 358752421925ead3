"""The paper's order of schedules comes out of a run, and not of every run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import mirror_paper
from experiments.mirror_costs import WINDOW, fitted, needed, paper_costs, weights
from experiments.provenance import PROJECT
from specdec.planner import Acceptance, serial
from specdec.runtime.synthetic import SHAPES

ORDER = ["SD+AR", "SD+streaming", "Mirror+AR", "Mirror+streaming"]


def run(place: Path, *options: str) -> Any:
    out = place / "mirror.json"
    mirror_paper.main(["--tasks", "translation", "--new-tokens", "96", "--out", str(out), *options])
    return json.loads(out.read_text())


def speeds(setting: Any) -> dict[str, float]:
    return {name: one["speedup"] for name, one in setting["tasks"]["translation"]["schedules"].items()}


def test_the_order_is_the_papers_where_branches_are_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path, "--spoiled", "0")
    free, paid = (speeds(setting) for setting in found["settings"])
    assert sorted(free, key=free.__getitem__) == ORDER
    assert found["settings"][0]["ordered_as_published"] == [1, 1]
    # Nothing forces it: where 64 branches cost four times a chain, preparing them all is the slowest way.
    assert min(paid, key=paid.__getitem__) == "Mirror+AR"
    assert found["settings"][1]["ordered_as_published"] == [0, 1]
    assert found["clock"] == "virtual" and found["command"].startswith(
        "python -m experiments.mirror_paper --tasks"
    )
    said = capsys.readouterr().out
    assert "translation" in said and "(4.13)" in said


def test_streaming_gains_nothing_where_a_step_yields_one_token(tmp_path: Path) -> None:
    found = run(tmp_path, "--spoiled", "0.3", "--branches", "flat", "--tokens-per-step", "1")
    speed = speeds(found["settings"][0])
    assert speed["SD+AR"] == speed["SD+streaming"] and speed["Mirror+AR"] == speed["Mirror+streaming"]
    last = found["settings"][0]["tasks"]["translation"]["schedules"]["Mirror+AR"]
    assert 0.4 < last["hit_rate"] < 0.95
    assert last["law"] == pytest.approx(last["speedup"], rel=0.1)


def test_weights_are_those_that_were_counted_on_the_models() -> None:
    found = json.loads((PROJECT / "docs/results/2026-11-23-bench-h200.json").read_text())
    for name, part in (("synthetic/qwen3-8b", "target"), ("synthetic/qwen3-0.6b", "drafter")):
        assert weights(SHAPES[name]) == found[part][0]["weight_bytes"]


def test_the_fitted_agreement_gives_the_speedup() -> None:
    costs = paper_costs(1.0, flat=True)
    agreement = fitted(costs, 2.34)
    timing = serial(costs, Acceptance.iid(agreement), WINDOW)
    assert costs.plain / timing.ms_per_token == pytest.approx(2.34)
    assert needed(costs, 4.13, 1.0) < needed(costs, 4.13, 0.7)  # type: ignore[operator]


def test_what_no_agreement_gives() -> None:
    costs = paper_costs(1.0, flat=False)
    assert needed(costs, 7.9, 1.0) is None
    with pytest.raises(ValueError, match="no agreement gives a speedup of 9"):
        fitted(costs, 9.0)


def test_a_schedule_that_changes_tokens_ends_the_study() -> None:
    verifier = mirror_paper.FullVerifier(mirror_paper.PAIR, dtype="float32", device="cpu")
    options = mirror_paper.parsed(["--new-tokens", "12"])
    with pytest.raises(RuntimeError, match="SD\\+AR on qa differs from plain decoding"):
        mirror_paper.studied(verifier, "qa", mirror_paper.Setting(True, 0.0), options, [1, 2, 3])


@pytest.mark.parametrize("wrong", [("--spoiled", "0.3", "1.5"), ("--spoiled", "nan"), ("--agreement", "-0.1")])
def test_a_share_is_from_0_to_1(
    tmp_path: Path, wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, *wrong)
    assert f"argument {wrong[0]}: invalid share value: '{wrong[-1]}'" in capsys.readouterr().err
