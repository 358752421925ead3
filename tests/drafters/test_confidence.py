"""Chains end behind the first token that is not trusted, whatever shapes must be."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from families import FAMILIES, VOCABULARY, perturbed, plain_logits, random_prompt

import specdec
from drafters import ModelDrafter, NullDrafter
from drafters.confidence import EntropyBound, TokenProbability
from drafters.shape import Shape
from specdec import Context, Noise, Sampling, tree
from specdec.noise import Still
from specdec.runtime import load
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3), random_prompt(7, seed=4)]
LENGTH = 6
WARM = Sampling(temperature=0.8, top_k=20)
CASES = [  # thresholds at which some go on and some do not
    (TokenProbability(0.1), Sampling()),
    (EntropyBound(0.105), Sampling()),
    (TokenProbability(0.04), WARM),
    (EntropyBound(0.26), WARM),
]


def context(sampling, static=False):
    longest = max(map(len, ROWS))
    tokens_BS = torch.tensor([[*row, *[0] * (longest + 8 - len(row))] for row in ROWS])
    lengths_B = torch.tensor([len(row) for row in ROWS])
    return Context(tokens_BS, lengths_B, torch.full_like(lengths_B, 9), sampling, static=static)


def module():
    return FAMILIES["llama"]()


def drafts(confidence, sampling, static=False, seed=0, length=LENGTH):
    """The draft of all rows, and how many forwards it took behind the first."""
    model = load(module()).model
    model.begin(len(ROWS), 40)
    here, shape = context(sampling, static), Shape.asked(length, confidence=confidence)
    if static:
        model.advance(here.tokens, here.lengths)
    noise = Still() if sampling.greedy else Noise(seed, torch.arange(len(ROWS)), 60)
    grow, calls = model.grow, []

    def noted(*what, **options):
        calls.append(what)
        return grow(*what, **options)

    model.grow = noted
    return shape.draft(model, here, noise, VOCABULARY), len(calls)


def trusts(confidence, law_V, token):
    """By the formula, for one token."""
    if isinstance(confidence, TokenProbability):
        return law_V[token] >= confidence.least
    entropy = -sum(p * log(p) for p in law_V.tolist() if p > 0)
    return 1 - sqrt(confidence.scale * entropy) >= confidence.least


def expected_counts(confidence, sampling, whole):
    """Lengths of chains, by plain forwards over the chain that is drafted without a stop."""
    counts = []
    for row, tokens in zip(ROWS, whole.tokens.tolist(), strict=True):
        count = 0
        for token in tokens:
            logits_V = plain_logits(module(), [*row, *tokens[:count]])[-1]
            law_V = logits_V.softmax(-1) if sampling.greedy else sampling.law(logits_V)
            count += 1
            if not trusts(confidence, law_V, token):
                break
        counts.append(count)
    return counts


def kept(draft):
    return [(parents != tree.PAD).sum().item() for parents in draft.parents]


@pytest.mark.parametrize(("confidence", "sampling"), CASES, ids=str)
def test_a_chain_ends_behind_the_first_token_that_is_not_trusted(confidence, sampling):
    lengths = set()
    for seed in range(3):
        whole, forwards = drafts(None, sampling, seed=seed)
        assert forwards == LENGTH - 1
        counts = expected_counts(confidence, sampling, whole)
        draft, forwards = drafts(confidence, sampling, seed=seed)
        assert kept(draft) == counts
        assert draft.size == max(counts) and forwards == max(counts) - 1, "no forward behind the last stop"
        padded, all_forwards = drafts(confidence, sampling, static=True, seed=seed)
        assert kept(padded) == counts and (padded.size, all_forwards) == (LENGTH, LENGTH - 1)
        for one in (draft, padded):
            there = one.parents != tree.PAD
            assert torch.equal(one.tokens[there], whole.tokens[:, : one.size][there])
            if not sampling.greedy:  # the laws of what is kept are those that it was drawn from
                torch.testing.assert_close(one.laws[there], whole.laws[:, : one.size][there])
        lengths |= set(counts)
    assert len(lengths) > 2, "all chains are alike: the test shows nothing"


def test_trust_that_never_fails_or_always_does():
    assert kept(drafts(0.0, WARM)[0]) == [LENGTH] * 4
    draft, forwards = drafts(1.0, WARM)
    assert kept(draft) == [1] * 4 and forwards == 0


def test_the_stop_costs_tokens_and_saves_drafts():
    target = module()
    verifier, results = FullVerifier(target), {}
    for least in (None, 0.2):
        drafter = ModelDrafter(perturbed(target, 0.1), length=LENGTH, confidence=least)
        results[least] = specdec.generate(verifier, drafter, ROWS, max_new_tokens=60)
    plain = specdec.generate(verifier, NullDrafter(), ROWS, max_new_tokens=60)
    assert torch.equal(results[None].tokens, plain.tokens) and torch.equal(results[0.2].tokens, plain.tokens)
    share = {
        least: sum(entry.accepted for entry in result.trace.rounds) / result.metrics.drafted_tokens
        for least, result in results.items()
    }
    assert results[0.2].metrics.drafted_tokens < 0.7 * results[None].metrics.drafted_tokens
    assert share[0.2] > 1.3 * share[None], "what is drafted is accepted more often"
    assert results[0.2].metrics.mean_accepted_tokens <= results[None].metrics.mean_accepted_tokens


def test_bounds_by_hand():
    law_11V, token_11 = torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([[1]])
    bound = 1 - sqrt(0.2 * log(2))
    assert EntropyBound(bound - 1e-6)(law_11V, token_11) and not EntropyBound(bound + 1e-6)(law_11V, token_11)
    assert TokenProbability(0.5)(law_11V, token_11) and not TokenProbability(0.51)(law_11V, token_11)


@pytest.mark.parametrize("least", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability(least):
    for make in (TokenProbability, EntropyBound, lambda number: ModelDrafter(module(), confidence=number)):
        with pytest.raises(ValueError, match=r"must be a probability in \[0, 1\]"):
            make(least)
    with pytest.raises(ValueError, match="scale must be at least 0"):
        EntropyBound(0.5, scale=-1)


def test_what_does_not_go_together():
    for options in ({"width": 2}, {"tree": [[0], [1]]}):
        with pytest.raises(ValueError, match="confidence ends chains of one token a step, not a tree"):
            Shape.asked(3, confidence=0.4, **options)
    two = type("Two", (), {"tokens_per_step": 2})()
    with pytest.raises(ValueError, match="not streams"):
        replace(Shape.asked(3, confidence=0.4), streams=two)
