"""Arms decode the same prompt under the same law, and measure the same things."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from drafters import NgramDrafter, NullDrafter
from experiments.arms import Decoding, EngineArm, HuggingFaceArm
from specdec import Block, Coupled, Match, Ratio, Sampling

PROMPT = [10, 11, 12, 10, 11, 12, 10, 11]
GREEDY = Decoding(20, Sampling(), Ratio())
HOT = replace(GREEDY, sampling=Sampling(temperature=1.3, top_k=50, top_p=0.95, min_p=0.01))


@pytest.fixture
def plain(verifier: Any) -> EngineArm:
    return EngineArm("plain", verifier, NullDrafter())


@pytest.fixture
def other(verifier: Any) -> HuggingFaceArm:
    return HuggingFaceArm("hf_generate", verifier)


@pytest.fixture
def opinionated(verifier: Any) -> Iterator[None]:
    """A checkpoint that has its own ideas of how to decode."""
    config = verifier.model.network.module.generation_config
    before = config.to_dict()
    config.update(do_sample=True, temperature=0.3, top_k=3, repetition_penalty=5.0, num_beams=2)
    yield
    config.update(**before)


def test_both_give_the_same_tokens_and_text(plain: EngineArm, other: HuggingFaceArm) -> None:
    ours, theirs = plain(PROMPT, GREEDY, 1), other(PROMPT, GREEDY, 1)
    assert (ours.tokens, ours.text) == (theirs.tokens, theirs.text) and len(ours.tokens) == 20


def test_both_under_a_repetition_penalty(plain: EngineArm, other: HuggingFaceArm) -> None:
    penal = replace(GREEDY, sampling=Sampling(repetition_penalty=1.8))
    assert plain(PROMPT, penal, 1).tokens == other(PROMPT, penal, 1).tokens != plain(PROMPT, GREEDY, 1).tokens


@pytest.mark.usefixtures("opinionated")
def test_the_checkpoints_own_settings_do_not_matter(plain: EngineArm, other: HuggingFaceArm) -> None:
    assert plain(PROMPT, GREEDY, 1).tokens == other(PROMPT, GREEDY, 1).tokens


def test_both_stop_at_the_same_token(plain: EngineArm, other: HuggingFaceArm) -> None:
    stop = plain(PROMPT, GREEDY, 1).tokens[5]
    stopped = replace(GREEDY, stop=(stop,))
    tokens = plain(PROMPT, stopped, 1).tokens
    assert tokens == other(PROMPT, stopped, 1).tokens and tokens[-1] == stop and len(tokens) <= 6


def test_both_sample_by_the_seed(plain: EngineArm, other: HuggingFaceArm) -> None:
    for arm in (plain, other):
        replies = [arm(PROMPT, HOT, seed).tokens for seed in (1, 1, 2)]
        assert replies[0] == replies[1] != replies[2]


def test_hugging_face_samples_the_same_law(verifier: Any, other: HuggingFaceArm) -> None:
    """With all but one token cut off, the law is known: greedy's."""
    narrow = replace(GREEDY, sampling=Sampling(temperature=2.0, top_k=1))
    assert other(PROMPT, narrow, 1).tokens == other(PROMPT, GREEDY, 1).tokens


def test_hugging_face_is_measured_as_plain_decoding(other: HuggingFaceArm) -> None:
    metrics = other(PROMPT, GREEDY, 1).metrics
    assert (metrics.new_tokens, metrics.rounds, metrics.mean_accepted_tokens) == (20, 20, 1)
    assert metrics.positions == () and metrics.drafter_seconds == 0
    assert 0 < metrics.target_seconds < metrics.seconds
    assert metrics.host_seconds == pytest.approx(metrics.seconds - metrics.target_seconds)


@pytest.mark.parametrize(
    ("decoding", "engine", "generate"),
    [
        (GREEDY, True, True),
        (HOT, False, False),
        (replace(HOT, acceptance=Block()), False, False),
        (replace(HOT, acceptance=Match()), True, False),
        (replace(HOT, acceptance=Coupled()), True, False),
    ],
)
def test_who_promises_plains_tokens(
    plain: EngineArm, other: HuggingFaceArm, decoding: Decoding, engine: bool, generate: bool
) -> None:
    drafting = replace(plain, drafter=NgramDrafter())
    assert drafting.repeats_plain(decoding) == engine and other.repeats_plain(decoding) == generate
    if engine:
        assert drafting(PROMPT, decoding, 1).tokens == plain(PROMPT, decoding, 1).tokens
