"""Every lossless rule, with every kind of draft, gives exactly the target's law; planted faults do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from exhaustive import TableModel, autoregressive, distribution, total_variation

from drafters import (
    EarlyExitDrafter,
    HybridDrafter,
    LookaheadDrafter,
    ModelDrafter,
    NgramDrafter,
    NullDrafter,
    RecyclingDrafter,
    SuffixDrafter,
)
from drafters.confidence import EntropyBound, TokenProbability
from specdec import Block, Coupled, Draft, Match, Ratio, Sampling, Typical
from verifiers import FullVerifier

V, PROMPT, NEW = 3, [0, 1, 2, 0, 1], 4
TARGET, SMALL = TableModel.random(V, 1), TableModel.random(V, 2)
WARM = Sampling(temperature=1.0)
LOSSLESS = [Ratio(), Match(), Coupled(), Block()]


class Altered:
    """A model drafter whose draft is changed before it goes out."""

    wants = ()

    def __init__(self, change, **options) -> None:
        self.inner, self.change = ModelDrafter(SMALL, **options), change

    def begin(self, target, seq) -> None:
        self.inner.begin(target, seq)

    def draft(self, context, noise):
        draft = self.inner.draft(context, noise)
        return draft if draft.size == 0 else self.change(draft)


class Static:
    """A drafter that makes shapes as for a recording: all rows draw to the end, whatever becomes of the others."""

    wants = ()

    def __init__(self, inner) -> None:
        self.inner = inner

    def begin(self, target, seq) -> None:
        self.inner.begin(target, seq)

    def draft(self, context, noise):
        return self.inner.draft(replace(context, static=True), noise)


class Dropping(Static):
    """The planted fault: the token that is not trusted goes, and the laws of the others stay."""

    def draft(self, context, noise):
        draft = super().draft(context, noise)
        own_BN = draft.laws.gather(-1, draft.tokens[..., None])[..., 0]
        stops_BN = own_BN < self.inner.shape.confidence.least
        return replace(draft, parents=torch.where(stops_BN, -2, draft.parents))


class SampledTree:
    """Two children of the root, drawn with or without replacement, and a child of the first, laws included."""

    wants = ()

    def __init__(self, replacement: bool) -> None:
        self.replacement = replacement

    def begin(self, target, seq) -> None: ...

    def draft(self, context, noise):
        place_B1 = context.lengths[:, None]
        law_B1V = SMALL.advance(context.tokens, context.lengths).logits.softmax(-1)
        first_B1 = noise.propose(law_B1V, place_B1, 0)
        rest_B1V = law_B1V if self.replacement else law_B1V.scatter(-1, first_B1[..., None], 0)
        rest_B1V = rest_B1V / rest_B1V.sum(-1, keepdim=True)
        second_B1 = noise.propose(rest_B1V, place_B1, 0, sibling=1)
        below_B1V = SMALL.grow(first_B1, torch.full_like(first_B1, -1)).softmax(-1)
        third_B1 = noise.propose(below_B1V, place_B1, 1)
        tokens_BN = torch.cat([first_B1, second_B1, third_B1], 1)
        laws_BNV = torch.cat([law_B1V, rest_B1V, below_B1V], 1)
        return Draft(tokens_BN, torch.tensor([-1, -1, 0]).expand_as(tokens_BN), context.lengths, laws_BNV)


def withheld(draft):
    return replace(draft, laws=None)


def half_withheld(draft):
    point = torch.zeros_like(draft.laws[:, :1]).scatter_(-1, draft.tokens[:, :1, None], 1)
    return replace(draft, laws=torch.cat([point, draft.laws[:, 1:]], 1))


DRAFTS = {
    "plain": NullDrafter,
    "chain": lambda: ModelDrafter(SMALL, length=2),
    "top_k_tree": lambda: ModelDrafter(SMALL, length=2, width=2, nodes=4),
    "wide_tree": lambda: ModelDrafter(SMALL, length=2, width=3, nodes=4),
    "static_tree": lambda: ModelDrafter(SMALL, tree=[[0], [2], [0, 0], [2, 1]]),
    "early_exit_static_tree": lambda: EarlyExitDrafter(tree=[[1], [1, 0], [1, 1]]),
    "token_probability": lambda: Static(ModelDrafter(SMALL, length=2, confidence=0.4)),
    "entropy_bound": lambda: Static(ModelDrafter(SMALL, length=2, confidence=EntropyBound(0.63))),
    "without_replacement": lambda: SampledTree(replacement=False),
    "with_replacement": lambda: SampledTree(replacement=True),
    "ngram": lambda: NgramDrafter(length=2),
    "suffix": lambda: SuffixDrafter(length=2, min_match=1),
    "early_exit": lambda: EarlyExitDrafter(length=2),
    "early_exit_tree": lambda: EarlyExitDrafter(length=2, width=2, nodes=3),
    "hybrid": lambda: HybridDrafter(NgramDrafter(length=2, min_ngram=2), ModelDrafter(SMALL, length=1)),
    "lookahead": lambda: LookaheadDrafter(window=2, ngram=2, guesses=1),
    "recycling": lambda: RecyclingDrafter(nodes=3, top=2, levels=2),
    "withheld": lambda: Altered(withheld, length=2),
    "half_withheld": lambda: Altered(half_withheld, length=2),
}


def distance(make_drafter, rule, sampling=WARM, new=NEW, rows=8192):
    expected = autoregressive(TARGET, PROMPT, new, sampling)
    got = distribution(make_drafter, FullVerifier(TARGET), rule, PROMPT, new, sampling, rows=rows)
    assert sum(got.values()) == pytest.approx(1, abs=1e-12), "the enumeration is not complete"
    return total_variation(got, expected)


# What these differ in from the others is their laws, which Match and Coupled never read.
LAW_KINDS = {"without_replacement", "with_replacement", "withheld", "half_withheld"}
CASES = [
    pytest.param(kind, rule, id=f"{kind}-{type(rule).__name__}")
    for kind in DRAFTS
    for rule in ([Ratio(), Block()] if kind in LAW_KINDS else LOSSLESS)
]


@pytest.mark.parametrize(("kind", "rule"), CASES)
def test_reproduces_the_targets_law(kind, rule):
    shares = kind in ("recycling", "hybrid")  # rows learn from each other, or are drafted for if others are
    assert distance(DRAFTS[kind], rule, rows=1 if shares else 8192) < 1e-12


@pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(temperature=0.7, top_k=2),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, min_p=0.2, repetition_penalty=1.4),
        Sampling(temperature=0.0, repetition_penalty=2.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", ["chain", "ngram"])
def test_reproduces_the_law_under_every_sampling(kind, rule, sampling):
    assert distance(DRAFTS[kind], rule, sampling) < 1e-12


def argmax_with_soft_law(draft):
    return replace(draft, tokens=draft.laws.argmax(-1))


def dropped_after_drawing(draft):
    own = draft.laws.gather(-1, draft.tokens[..., None])[..., 0]
    keeps = (own > 0.3).cumprod(1).bool()
    return replace(draft, parents=torch.where(keeps, draft.parents, -2))


def law_off_by_one(draft):
    return replace(draft, laws=draft.laws.roll(1, 1))


@pytest.mark.parametrize("rule", [Ratio(), Block()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("fault", [argmax_with_soft_law, dropped_after_drawing, law_off_by_one])
def test_planted_faults_are_caught(fault, rule):
    assert distance(lambda: Altered(fault, length=2), rule) > 0.01


@pytest.mark.parametrize("rule", [Ratio(), Block()], ids=lambda rule: type(rule).__name__)
def test_a_stop_that_drops_the_token_at_which_it_stops_is_caught(rule):
    assert distance(lambda: Dropping(ModelDrafter(SMALL, length=2, confidence=0.4)), rule) > 0.01


@pytest.mark.parametrize("confidence", [TokenProbability(0.4), EntropyBound(0.63)])
def test_those_stops_end_some_chains_and_not_others(confidence):
    law_VVV = SMALL.table.softmax(-1).flatten(0, 1)
    goes_on = torch.stack([confidence(law_VVV[:, None], torch.full((V * V, 1), x)) for x in range(V)])
    assert 0.2 < goes_on.double().mean() < 0.8


@pytest.mark.parametrize("fault", [argmax_with_soft_law, dropped_after_drawing, law_off_by_one])
def test_the_same_faults_are_harmless_without_laws(fault):
    assert distance(lambda: Altered(lambda draft: withheld(fault(draft)), length=2), Ratio()) < 1e-12


def test_typical_acceptance_says_that_it_is_lossy_and_is():
    assert not Typical().lossless
    assert distance(DRAFTS["chain"], Typical()) > 0.01
    assert distance(DRAFTS["chain"], Typical(), Sampling(temperature=0)) < 1e-12
