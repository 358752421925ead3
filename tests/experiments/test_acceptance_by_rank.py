"""Which ranks are right, beside whole trees drafted one by one, plain forwards, and what a generation accepts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from families import FAMILIES, perturbed, plain_logits, random_prompt

import specdec
from drafters import EagleDrafter, EarlyExitDrafter, MedusaDrafter, ModelDrafter, NgramDrafter, ReDrafter
from drafters.eagle import EagleHead
from drafters.medusa import MedusaHeads
from drafters.redrafter import RecurrentHead
from drafters.trainable import FrozenTarget
from experiments.acceptance_by_rank import lines, shares, trees
from experiments.followed import Counts, followed
from experiments.replies import Text, replies
from experiments.train_data import Batch
from specdec import Draft, Tap
from verifiers import FullVerifier

PROMPTS = [random_prompt(length, seed) for seed, length in enumerate((9, 4, 14))]
RANKS, DEPTHS, NEW = 3, 4, 12
WHOLE = [path for depth in range(1, DEPTHS + 1) for path in product(range(RANKS), repeat=depth)]


@pytest.fixture(scope="module")
def target() -> Any:
    return FAMILIES["llama"]()


@pytest.fixture(scope="module")
def texts(target: Any) -> list[Text]:
    (texts,) = replies(FullVerifier(target), PROMPTS, NEW, rows=3)
    texts[1] = Text(texts[1].tokens[:-5], texts[1].prompt)  # as if it had ended
    return texts


def taught(head: Any, verifier: FullVerifier, texts: list[Text], steps: int) -> Any:
    """The head after a few lessons on the very texts, which make it right now and then."""
    network, batch = verifier.model.network, Batch.of(texts, verifier.device)
    states = batch.states(verifier.model, (Tap(network.depth),))
    learner = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(steps):
        learner.zero_grad()
        sum(head.losses(states, batch.tokens, batch.wanted, FrozenTarget(network)).values()).backward()
        learner.step()
    return head


def maker(name: str, target: Any, texts: list[Text]) -> Callable[..., Any]:
    """Of drafters of the same weights, by their shape."""
    torch.manual_seed(5)
    verifier, draft = FullVerifier(target), perturbed(target, 0.05)
    network = FrozenTarget(verifier.model.network)
    if name == "model":
        return lambda **shape: ModelDrafter(draft, **shape)
    if name == "early_exit":
        return lambda **shape: EarlyExitDrafter(3, **shape)
    kind, fresh = {
        "medusa": (MedusaDrafter, MedusaHeads.fresh),
        "redrafter": (ReDrafter, RecurrentHead.fresh),
        "eagle": (EagleDrafter, EagleHead.fresh),
    }[name]
    head = taught(fresh(network), verifier, texts, 12)
    return lambda **shape: kind(head, **shape)


class Spy:
    """Has the target decode a text again, and counts in plain Python which children were right in each draft."""

    static = False

    def __init__(self, drafter: Any, texts: list[Text]) -> None:
        self.drafter, self.texts = drafter, texts
        self.tested, self.accepted = [0] * DEPTHS, [[0] * RANKS for _ in range(DEPTHS)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drafter, name)

    def draft(self, context: Any, noise: Any) -> Draft:
        # A tree of which not all can be committed would be cut.
        room_B = torch.where(context.room > 0, context.room + DEPTHS, 0)
        found = self.drafter.draft(replace(context, room=room_B), noise)
        for b, text in enumerate(self.texts):
            row = context.row(b)
            assert row == list(text.tokens[: len(row)])  # greedy: the target says it again
            above = -1
            for depth, token in enumerate(text.tokens[len(row) : len(row) + DEPTHS]):
                children = [n for n, parent in enumerate(found.parents[b].tolist()) if parent == above]
                if not children:
                    break
                self.tested[depth] += 1
                right = [rank for rank, n in enumerate(children) if found.tokens[b, n] == token]
                if not right:
                    break
                self.accepted[depth][right[0]] += 1
                above = children[right[0]]
        return Draft.empty(context.lengths)


def counted(verifier: FullVerifier, drafter: Any, texts: list[Text]) -> tuple[list[int], list[list[int]]]:
    """By brute force: the whole tree of all ranks at every place, row by row since replies differ in length."""
    tested, accepted = torch.zeros(DEPTHS, dtype=torch.int64), torch.zeros(DEPTHS, RANKS, dtype=torch.int64)
    for text in texts:
        spy = Spy(drafter, [text])
        new = len(text.tokens) - text.prompt
        specdec.generate(verifier, spy, [list(text.tokens[: text.prompt])], new + 1)
        tested += torch.tensor(spy.tested)
        accepted += torch.tensor(spy.accepted)
    return tested.tolist(), accepted.tolist()


@pytest.mark.parametrize("name", ["model", "early_exit", "medusa", "redrafter", "eagle"])
def test_they_are_those_of_whole_trees(name: str, target: Any, texts: list[Text]) -> None:
    verifier, make = FullVerifier(target), maker(name, target, texts)
    found = followed(verifier, make(length=DEPTHS), texts, RANKS)
    tested, accepted = counted(verifier, make(tree=WHOLE), texts)
    assert (found.tested.tolist(), found.accepted.tolist()) == (tested, accepted)
    assert tested[0] == sum(len(text.tokens) - text.prompt - 1 for text in texts)
    assert tested[1] > 0 and tested[0] > sum(accepted[0]) > 0  # neither always right nor never


def plain_counts(module: Any, texts: list[Text]) -> Iterator[tuple[int, int]]:
    """Depth and rank of every place that a draft would reach, of a drafter that says the same whoever drafted."""
    for text in texts:
        logits_SV = plain_logits(module, list(text.tokens))
        ranks = [
            int((logits_SV[place - 1] > logits_SV[place - 1][token]).sum())
            for place, token in enumerate(text.tokens)
        ]
        for place in range(text.prompt + 1, len(text.tokens)):
            for depth, rank in enumerate(ranks[place : place + DEPTHS]):
                yield depth, rank
                if rank >= RANKS:
                    break


def test_a_models_are_those_of_plain_forwards(target: Any, texts: list[Text]) -> None:
    draft = perturbed(target, 0.2)
    found = followed(FullVerifier(target), ModelDrafter(draft, length=DEPTHS), texts, RANKS)
    every = list(plain_counts(draft, texts))
    assert found.tested.tolist() == [sum(depth == d for depth, _ in every) for d in range(DEPTHS)]
    assert found.accepted.tolist() == [[every.count((d, r)) for r in range(RANKS)] for d in range(DEPTHS)]


def test_they_say_what_a_generation_accepts(target: Any) -> None:
    """Of a tree of one level, whose parent is always accepted, what its ranks say."""
    verifier, draft = FullVerifier(target), perturbed(target, 0.2)
    result = specdec.generate(verifier, ModelDrafter(draft, tree=[[0], [1]]), PROMPTS, max_new_tokens=60)
    texts = [Text((*prompt, *result.row(b)), len(prompt)) for b, prompt in enumerate(PROMPTS)]
    found = shares(followed(verifier, ModelDrafter(draft, length=1), texts, 2))
    accepted = result.metrics.mean_accepted_drafts
    # A round tests the first token it commits only: every other place is a bonus token's.
    assert accepted == pytest.approx(sum(found["acceptance"]), abs=0.15)
    assert abs(accepted - found["acceptance"][0]) > 0.02


def test_a_drafter_without_trees_is_measured_as_it_drafts() -> None:
    texts = [Text((5, 6, 7, 5, 6, 7, 5, 6, 9, 5), 3)]
    found = followed(FullVerifier(FAMILIES["llama"]()), NgramDrafter(length=2, max_ngram=1), texts, RANKS)
    # Proposed: 6 7, 7 5, 5 6 which follow; 6 7 where 6 9 does, 7 5 where 9 does; and nothing behind 9.
    assert found.tested.tolist() == [5, 4]
    assert found.accepted.tolist() == [[4, 0, 0], [3, 0, 0]]


def test_shares_and_trees() -> None:
    counts = Counts(torch.tensor([6, 2, 0]), torch.tensor([[3, 1, 0], [0, 1, 0], [0, 0, 0]]))
    found = shares(counts)
    assert found == {
        "tested": [6, 2],
        "acceptance": [3 / 8, 2 / 8, 0],
        "acceptance_by_depth": [[3 / 6, 1 / 6, 0], [0, 1 / 2, 0]],
    }
    (tree,) = trees(counts, [3])
    assert tree == {"nodes": 3, "accepted": pytest.approx(3 / 8 + 2 / 8 + 9 / 64), "paths": [[0], [1], [0, 0]]}
    assert max(map(len, trees(counts, [30])[0]["paths"])) == 2  # as deep as was measured
    said = lines({**found, "drafter": {"_target_": "some"}, "trees": [tree]})
    assert said[-1] == "3 nodes, 0.77 accepted: drafter.tree=[[0],[1],[0,0]]"
    assert trees(Counts(torch.tensor([4]), torch.tensor([[0, 0]])), [3]) == []
    with pytest.raises(ValueError, match="nothing"):
        shares(Counts.none(2, 2))
