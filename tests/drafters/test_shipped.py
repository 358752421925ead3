"""What is shipped loads, fits its target, and says where it comes from."""

from __future__ import annotations

import json

import pytest

from drafters import AdapterDrafter, Eagle3Drafter, MedusaDrafter, StreamDrafter
from drafters.checkpoint import config_of
from drafters.weights import SHIPPED, shipped

KINDS = {"eagle3": Eagle3Drafter, "medusa": MedusaDrafter, "adapter": AdapterDrafter, "stream": StreamDrafter}
MOST = 40_000_000  # bytes of all heads of a target


@pytest.mark.parametrize("name", shipped())
def test_a_head_loads_and_has_its_papers(name):
    folder, (target, kind) = shipped()[name], name.split("/")
    drafter = KINDS[kind](name)
    assert config_of(name)["num_target_layers"] == 30 and drafter.size > 0
    card, origin = (folder / "README.md").read_text(), json.loads((folder / "provenance.json").read_text())
    assert f"base_model: {target}" in card and origin["command"] in card and origin["git"]["revision"] in card
    assert f"{origin['accepted_tokens']:.3f}" in card and origin["accepted_tokens"] > 1
    assert origin["data"]["held out, of other prompts"] > 1000


def test_all_heads_of_a_target_are_small():
    for target in SHIPPED.iterdir():
        assert 0 < sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) <= MOST
