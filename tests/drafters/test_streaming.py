"""A drafter that yields several tokens a forward drafts what its one-token twin does, in fewer forwards."""

from __future__ import annotations

import math

import pytest
import torch

import specdec
from drafters import SyntheticDrafter
from drafters.streaming import StreamingDrafter, Successors
from specdec import Block, Coupled, Match, Ratio, Result, Sampling
from specdec.channel import Inline, Thread
from specdec.exit import Exit
from specdec.forecast import AllAccepted, DraftTopK, EarlyExitTopK
from specdec.runtime import CachedModel
from specdec.runtime.synthetic import SHAPES, successors
from verifiers import FullVerifier

TINY = "synthetic/tiny"
V = SHAPES[TINY].vocab_size
ROWS = [[3], [77, 8, 9], [300, 12]]
AGREEMENT = 0.8


@pytest.fixture(scope="module")
def verifier() -> FullVerifier:
    return FullVerifier(TINY, dtype="float32", device="cpu")


def drafter(tokens_per_step: int, length: int = 5) -> SyntheticDrafter:
    return SyntheticDrafter(
        TINY, AGREEMENT, length, tokens_per_step=tokens_per_step, dtype="float32", device="cpu"
    )


def rounds(result: Result) -> list[tuple[int, int, int]]:
    return [(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds]


RULES = [
    (Sampling(), Ratio()),
    (Sampling(temperature=1), Ratio()),
    (Sampling(temperature=1), Block()),
    (Sampling(temperature=1), Match()),
    (Sampling(temperature=1), Coupled()),
]
FORECASTS = [None, AllAccepted(), DraftTopK(2), EarlyExitTopK(Exit(1, 2))]
STEPS = [2, 3, 4, 7]


@pytest.mark.parametrize(
    ("tokens_per_step", "sampling", "rule", "channel", "forecast"),
    [
        (
            STEPS[(index + turn) % len(STEPS)],
            *rule,
            (Inline(), Thread(patience=60))[(index + turn // 2) % 2],
            forecast,
        )
        for index, rule in enumerate(RULES)
        for turn, forecast in enumerate(FORECASTS)
    ],
)
def test_tokens_and_rounds_are_those_of_the_one_token_twin(
    verifier, tokens_per_step, sampling, rule, channel, forecast
):
    options = {"max_new_tokens": 40, "sampling": sampling, "acceptance": rule, "seed": 3}
    expected = specdec.generate(verifier, drafter(1), ROWS, **options)
    result = specdec.generate(
        verifier, drafter(tokens_per_step), ROWS, forecast=forecast, channel=channel, **options
    )
    assert torch.equal(result.tokens, expected.tokens)
    assert rounds(result) == rounds(expected)
    assert not result.metrics.faults


def test_streams_that_are_wrong_cost_acceptance_and_no_token(verifier):
    # Without this, the twin's rounds could be met by streams that nobody reads.
    model = drafter(1).model
    wrong = Successors.of(successors(V).roll(1), 3, "cpu")
    expected = specdec.generate(verifier, drafter(3), ROWS, max_new_tokens=60)
    result = specdec.generate(verifier, StreamingDrafter(model, wrong), ROWS, max_new_tokens=60)
    assert torch.equal(result.tokens, expected.tokens)
    assert result.metrics.mean_accepted_tokens < 0.8 * expected.metrics.mean_accepted_tokens


class Counted:
    """Counts the forwards of a model and the tokens that they read."""

    def __init__(self, model: CachedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widths: list[int] = []
        network = model.network
        plain = type(network).__call__

        def counting(asked, tokens, *rest):
            if asked is network:
                self.widths.append(tokens.shape[1])
            return plain(asked, tokens, *rest)

        monkeypatch.setattr(type(network), "__call__", counting)


@pytest.mark.parametrize("length", [1, 2, 5, 6])
@pytest.mark.parametrize("tokens_per_step", [1, 2, 3, 4])
def test_a_draft_takes_a_forward_per_step(verifier, tokens_per_step, length, monkeypatch):
    streaming = drafter(tokens_per_step, length)
    counted = Counted(streaming.model, monkeypatch)
    result = specdec.generate(verifier, streaming, [3], max_new_tokens=1 + 4 * (length + 1))
    full = [entry for entry in result.trace.rounds if entry.drafted == length]
    assert len(full) > 1
    shorter = [entry.drafted for entry in result.trace.rounds[1:] if entry.drafted != length]
    expected = math.ceil(length / tokens_per_step) * len(full)
    expected += sum(math.ceil(count / tokens_per_step) for count in shorter)
    assert len(counted.widths) == expected


@pytest.mark.parametrize("tokens_per_step", [0, -1, 1.5])
def test_steps_of_no_whole_number_of_tokens_are_refused(tokens_per_step):
    with pytest.raises(ValueError, match="tokens_per_step must be a whole number of at least 1"):
        drafter(tokens_per_step)


def test_streams_on_a_tree_are_refused():
    with pytest.raises(ValueError, match="choose width=1 or one token a step"):
        SyntheticDrafter(TINY, AGREEMENT, width=2, tokens_per_step=2, dtype="float32", device="cpu")
