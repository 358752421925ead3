"""Every drafter that a configuration names has its acceptance by rank measured, and takes the trees made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import specdec
from experiments.acceptance_by_rank import main
from experiments.run import CONF
from verifiers import FullVerifier

SEVERAL = ("demo", "trained", "training_free")
DRAFTERS = sorted(file.stem for file in (CONF / "drafter").glob("*.yaml") if file.stem not in ("plain", *SEVERAL))
CHAINS = ("hybrid", "lookahead", "ngram", "stream", "suffix")


@pytest.fixture
def values(tiny_model_dir: Path, tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": said}) + "\n" for said in ("the cat the cat the", "one two")))
    return [f"target={tiny_model_dir}", "device=cpu", "dtype=float32", "data=jsonl", f"data.path={prompts}"]


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_drafter_is_measured_and_drafts_the_tree(
    name: str,
    values: list[str],
    tiny_model_dir: Path,
    tiny_heads: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = [f"drafter={name}", *values]
    if name.startswith("model"):
        values.append(f"drafter.model={tiny_model_dir}")
    if (heads := name.removesuffix("_tree")) in tiny_heads:
        values.append(f"drafter.weights={tiny_heads[heads]}")
    if name == "hybrid":
        values.append(f"drafter.second.weights={tiny_heads['eagle3']}")
    out = tmp_path / "found.json"
    main([*values, "max_new_tokens=30", "--ranks", "4", "--nodes", "5", "--out", str(out)])
    found, said = json.loads(out.read_text()), capsys.readouterr().out
    assert len(found["acceptance"]) == 4 and 0 < found["tested"][0] <= 2 * 29
    assert sum(found["acceptance"]) <= 1 + 1e-9
    if not found["trees"]:
        assert name in (*CHAINS, "recycling") or not any(found["acceptance"])
        return
    (tree,) = found["trees"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = next(
            word for line in said.splitlines() for word in line.split() if word.startswith("drafter.tree=")
        )
        config = compose("config", [*values, given, "drafter.width=1", "drafter.nodes=null"])
    drafter = instantiate(config.drafter, _convert_="all")
    assert drafter.size == tree["nodes"] <= 5 and drafter.shape.tree.paths == tuple(map(tuple, tree["paths"]))
    result = specdec.generate(
        FullVerifier(tiny_model_dir, dtype="float32", device="cpu"), drafter, "the cat the", 8
    )
    assert not result.metrics.faults


@pytest.mark.parametrize("name", [*SEVERAL, "plain"])
def test_one_drafter_at_a_time_that_drafts(name: str, values: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one drafter is measured" if name in SEVERAL else "proposed nothing"):
        main([f"drafter={name}", *values, "max_new_tokens=4", "--out", str(tmp_path / "found.json")])
