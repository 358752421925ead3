"""What the early exit has named, in the trace of every round, beside whole forwards by Hugging Face."""

from __future__ import annotations

import copy

import pytest
import torch

import specdec
from drafters import ModelDrafter
from specdec import Coupled, Sampling
from specdec.channel import Inline, Thread
from specdec.exit import Exit
from specdec.forecast import DraftTopK, EarlyExitTopK
from specdec.overlap import Overlap
from verifiers import FullVerifier

ROWS, LAYER, TOP = [[1, 2, 3, 1, 2], [9, 4]], 2, 4


def masses(module, tokens: list[int], temperature: float) -> list[float]:
    """Mass of the final law on the exit's likeliest tokens, behind each token."""
    module = copy.deepcopy(module)  # asked for its states, it keeps hooks that cannot be sent to another process
    with torch.no_grad():
        said = module(torch.tensor([tokens]), output_hidden_states=True)
        early = module.lm_head(module.model.norm(said.hidden_states[LAYER]))[0]
    named = early.topk(TOP, -1).indices
    if temperature == 0:
        return (named == said.logits[0].argmax(-1, keepdim=True)).any(-1).float().tolist()
    return (said.logits[0] / temperature).softmax(-1).gather(-1, named).sum(-1).tolist()


@pytest.mark.parametrize("channel", [Inline(), Thread(patience=60)], ids=lambda channel: type(channel).__name__)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_it_is_that_of_whole_forwards(tiny_target, tiny_draft, channel, temperature) -> None:
    result = specdec.generate(
        FullVerifier(tiny_target),
        ModelDrafter(tiny_draft, length=3),
        ROWS,
        24,
        sampling=Sampling(temperature=temperature),
        acceptance=Coupled(),
        forecast=EarlyExitTopK(Exit(LAYER, TOP)),
        channel=channel,
    )
    seen = 0
    for row, prompt in enumerate(ROWS):
        expected, length = masses(tiny_target, prompt + result.row(row), temperature), len(prompt)
        rounds = [entry for entry in result.trace.rounds if entry.row == row]
        for entry, handover in zip(rounds[:-1], result.trace.handovers, strict=False):
            given = handover.omega[row]
            wanted = expected[length - 1 : length + entry.accepted]
            assert given == pytest.approx(wanted, abs=1e-4) and len(given) == entry.accepted + 1
            length, seen = length + entry.committed, seen + entry.accepted
    assert seen > 3
    omega = Overlap.of(result.trace).omega
    assert 0 < omega[0].mean < 1 and sum(named.places for named in omega.values()) > 20


def test_without_an_exit_there_is_none(tiny_target, tiny_draft) -> None:
    result = specdec.generate(
        FullVerifier(tiny_target), ModelDrafter(tiny_draft, length=3), ROWS, 12, forecast=DraftTopK(2)
    )
    assert len(result.trace.handovers) > 2 and not any(one.omega for one in result.trace.handovers)
