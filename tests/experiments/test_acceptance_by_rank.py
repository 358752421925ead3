"""Ranks of the target's tokens, beside plain forwards, and what a generation with such a tree accepts."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, perturbed, plain_logits, random_prompt

import specdec
from drafters import EarlyExitDrafter, ModelDrafter
from drafters.static_tree import StaticTree
from experiments.acceptance_by_rank import by_rank, main, planned, ranks
from experiments.replies import Text, replies
from verifiers import FullVerifier

PROMPTS = [random_prompt(length, seed) for seed, length in enumerate((9, 4, 14))]


def plain_ranks(module, texts: list[Text]) -> list[int]:
    found = []
    for text in texts:
        logits_SV = plain_logits(module, list(text.tokens))
        for place in range(text.prompt, len(text.tokens)):
            found.append(int((logits_SV[place - 1] > logits_SV[place - 1][text.tokens[place]]).sum()))
    return found


def test_ranks_are_those_of_plain_forwards() -> None:
    target = FAMILIES["llama"]()
    draft, verifier = perturbed(target, 0.2), FullVerifier(target)
    (texts,) = replies(verifier, PROMPTS, 12, rows=3)
    texts[1] = Text(texts[1].tokens[:-5], texts[1].prompt)  # as if it had ended
    found_P = ranks(verifier, ModelDrafter(draft), texts)
    assert found_P.tolist() == plain_ranks(draft, texts)
    assert len(found_P) == 31 and len(set(found_P.tolist())) > 3
    shallow = copy.deepcopy(target)
    shallow.model.layers = shallow.model.layers[:2]
    assert ranks(verifier, EarlyExitDrafter(2), texts).tolist() == plain_ranks(shallow, texts)


def test_shares_and_trees() -> None:
    shares = by_rank([torch.tensor([0, 0, 3, 9]), torch.tensor([1, 0, 50, 1])], 4)
    assert shares == {"places": 8, "acceptance": [3 / 8, 2 / 8, 0, 1 / 8]}
    assert planned(shares["acceptance"], 3, 2) == {
        "nodes": 3,
        "accepted": pytest.approx(3 / 8 + 2 / 8 + 9 / 64),
        "paths": [[0], [1], [0, 0]],
    }


def test_they_say_what_a_generation_accepts() -> None:
    """Of a tree of one level, whose parent is always accepted, exactly what its ranks say."""
    target = FAMILIES["llama"]()
    verifier, drafter = FullVerifier(target), ModelDrafter(perturbed(target, 0.2), tree=StaticTree.of([[0], [1]]))
    result = specdec.generate(verifier, drafter, PROMPTS, max_new_tokens=60)
    texts = [Text((*prompt, *result.row(b)), len(prompt)) for b, prompt in enumerate(PROMPTS)]
    shares = by_rank([ranks(verifier, drafter, texts)], 2)
    accepted = result.metrics.mean_accepted_drafts
    # A round tests the first token it commits only: every other place is a bonus token's.
    assert accepted == pytest.approx(sum(shares["acceptance"]), abs=0.15)
    assert abs(accepted - shares["acceptance"][0]) > 0.02


def test_the_command(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(
        f"--target {tiny_model_dir} --limit 2 --new-tokens 6 --rows 2 --nodes 4 --ranks 5 --dtype float32 "
        f"--device cpu --exit-layer 1 --depth 2 --out {out}".split()
    )
    found = json.loads(out.read_text())
    assert found["places"] <= 12 and len(found["acceptance"]) == 5 and found["drafter"] == "first 1 layers"
    for tree in found["trees"]:
        StaticTree.of(tree["paths"])
    assert f"{found['places']} places" in capsys.readouterr().out
