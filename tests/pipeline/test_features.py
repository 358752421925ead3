"""Drafters that read states of the target, while the target works: tokens are plain decoding's."""

from __future__ import annotations

import pytest
import torch

import specdec
from drafters import Eagle3Drafter, NullDrafter
from drafters.eagle3_head import Eagle3Head
from specdec import Coupled, Match, Ratio, Sampling
from specdec.channel import Inline, Thread
from specdec.exit import Exit
from specdec.forecast import AllAccepted, DraftTopK, EarlyExitTopK
from verifiers import FullVerifier

ROWS = [[1, 2, 3, 1, 2], [9], [4] * 7]
WARM = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 128}
    return Eagle3Head(sizes, 32, layers=(1, 2, 3))


@pytest.mark.parametrize("shape", [{}, {"width": 2, "nodes": 5}], ids=["chain", "tree"])
@pytest.mark.parametrize("channel", [Inline(), Thread(patience=60)], ids=["inline", "thread"])
@pytest.mark.parametrize(
    ("forecast", "sampling", "rule"),
    [
        (AllAccepted(), Sampling(), Ratio()),
        (DraftTopK(8), WARM, Match()),
        (EarlyExitTopK(Exit(3, 3)), WARM, Coupled()),
        (EarlyExitTopK(Exit(3, 4)), Sampling(), Ratio()),
    ],
)
def test_tokens_are_plain_decodings(tiny_target, head, shape, channel, forecast, sampling, rule):
    def play(drafter, **ahead):
        return specdec.generate(
            FullVerifier(tiny_target), drafter, ROWS, 24, sampling=sampling, acceptance=rule, seed=3, **ahead
        )

    plain = play(NullDrafter())
    result = play(Eagle3Drafter(head, length=3, **shape), forecast=forecast, channel=channel)
    assert [result.row(b) for b in range(3)] == [plain.row(b) for b in range(3)]
    assert not result.metrics.faults
    hits = sum(sum(handover.hit) for handover in result.trace.handovers)
    late = isinstance(channel, Thread)  # it may find no time to prepare
    assert hits or late or isinstance(forecast, AllAccepted), "a random head is never right to its end"


def test_a_fresh_draft_reads_the_targets_states(tiny_target, head):
    """Where nothing is prepared, every draft is that of decoding in turns."""

    class Unprepared(Eagle3Drafter):
        look = branch = resume = property()

    def rounds(result):
        return [(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds]

    turns = specdec.generate(FullVerifier(tiny_target), Eagle3Drafter(head, length=3), ROWS, 24)
    ahead = specdec.generate(
        FullVerifier(tiny_target), Unprepared(head, length=3), ROWS, 24, forecast=AllAccepted(), channel=Inline()
    )
    assert rounds(ahead) == rounds(turns) and not ahead.metrics.faults
