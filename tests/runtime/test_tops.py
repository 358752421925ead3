"""The target's likeliest tokens are told for every node of a window, accepted or not, in both loops."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, random_prompt

import specdec
from drafters import NgramDrafter
from specdec import Coupled, Draft, Sampling, Tap, Top, Verdict, tree
from specdec.channel import Inline, Thread
from specdec.forecast import AllAccepted
from specdec.sequences import Sequences
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
NODES = [random_prompt(5, seed=4), random_prompt(5, seed=5), random_prompt(5, seed=6)]
PARENTS = [[-1, -1, 0, 1, 3], [-1, 0, 1, 2, tree.PAD], [tree.PAD] * 5]


@torch.no_grad()
def plain_top(module, row, count):
    """By Hugging Face's logits, without any cache."""
    logits_V = module(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]
    return sorted(range(len(logits_V)), key=lambda token: -float(logits_V[token]))[:count]


def way(tokens, parents, node):
    """The tokens from the root to a node."""
    return [] if node == tree.ROOT else [*way(tokens, parents, parents[node]), tokens[node]]


def check(tops, module, rows, count):
    """Behind every node there is what the target would say there."""
    places = 0
    for b, row in enumerate(rows):
        root, *tokens = tops.tokens[b].tolist()
        parents = tops.parents[b].tolist()
        assert root == row[-1]
        for node in [tree.ROOT, *(n for n, parent in enumerate(parents) if parent != tree.PAD)]:
            expected = plain_top(module, [*row, *way(tokens, parents, node)], count)
            assert tops.successors[b, node + 1].tolist() == expected
            places += 1
    return places


@pytest.mark.parametrize("family", ["llama", "gemma3-hybrid", "gpt2"])
@pytest.mark.parametrize("taps", [(), (Tap(1),)], ids=["alone", "beside a tap"])
def test_every_node_s_are_those_of_a_plain_forward(family, taps):
    module = FAMILIES[family]()
    verifier, seq = FullVerifier(module), Sequences.start(ROWS, 16, sampling=Sampling(temperature=0.7, top_k=2))
    verifier.begin(seq, (*taps, Top(2), Top(4)))
    draft = Draft(torch.tensor(NODES), torch.tensor(PARENTS), seq.lengths)
    verdict = Verdict(torch.full((3, 5), -1), torch.zeros(3).long(), torch.tensor([70, 71, 72]))
    advice = verifier.score(seq, draft).along(verdict)
    assert check(advice.tops, module, ROWS, 4) == 6 + 5 + 1
    assert set(advice.states) == set(taps) and bool(advice.positions.numel()) == bool(taps)


def test_who_wants_none_gets_none():
    verifier, seq = FullVerifier(FAMILIES["llama"]()), Sequences.start(ROWS, 16)
    for wants in ((), (Tap(1),)):
        verifier.begin(seq, wants)
        verdict = Verdict(seq.tokens[:, :0], torch.zeros(3).long(), seq.lengths)
        advice = verifier.score(seq, Draft.empty(seq.lengths)).along(verdict)
        assert advice is None if not wants else advice.tops is None


def test_more_than_there_are_are_refused():
    with pytest.raises(ValueError, match="128 tokens: it cannot name the 129"):
        FullVerifier(FAMILIES["llama"]()).begin(Sequences.start(ROWS, 16), (Top(129),))
    with pytest.raises(ValueError, match="at least 1"):
        Top(0)


class Curious(NgramDrafter):
    """Keeps what it was told of every window, and what the rows were then."""

    wants = (Top(3),)

    def begin(self, target, seq):
        self.told, self.before = (
            [],
            [row[:length] for row, length in zip(seq.tokens.tolist(), seq.lengths, strict=True)],
        )

    def draft(self, context, noise):
        self.told.append((context.advice.tops, self.before))
        self.before = [context.row(b) for b in range(len(context.lengths))]
        return super().draft(context, noise)


@pytest.mark.parametrize("channel", [None, Inline(), Thread(patience=60)], ids=["serial", "inline", "thread"])
def test_both_loops_tell_them_round_after_round(channel):
    module, drafter = FAMILIES["llama"](), Curious(length=3, min_ngram=1)
    forecast = None if channel is None else AllAccepted()
    options = {"sampling": Sampling(temperature=0.7), "acceptance": Coupled(), "forecast": forecast}
    specdec.generate(FullVerifier(module), drafter, [[1, 2, 3, 1, 2], [4] * 7], 12, channel=channel, **options)
    assert len(drafter.told) > 3
    places = sum(check(tops, module, before, 3) for tops, before in drafter.told)
    assert places > 2 * len(drafter.told), "nothing but roots was looked at"
