"""The drafter in a process of its own: the same tokens, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
import torch

import specdec
from drafters import ModelDrafter, NgramDrafter, NullDrafter
from specdec import Coupled, Sampling
from specdec.channel import Process, pair
from specdec.channel.wire import decode
from specdec.exit import Exit
from specdec.forecast import Blend, DraftTopK
from verifiers import FullVerifier

ROWS = [[1, 2, 3, 1, 2], [9], [4] * 11]
WARM = {"sampling": Sampling(temperature=0.7), "acceptance": Coupled()}
SAMPLINGS = [{}, WARM]


@pytest.fixture
def channel():
    made = Process(patience=60)
    yield made
    made.close()


def child_of(channel):
    return channel._link._ends.child


def test_tokens_are_plain_decodings_and_the_process_stays(tiny_target, channel):
    verifier, drafter = FullVerifier(tiny_target), ModelDrafter(tiny_target, length=3)
    forecast, children = Blend(Exit(2, 4), top=4), set()
    for options in (*SAMPLINGS, {}):
        expected = specdec.generate(verifier, NullDrafter(), ROWS, 30, **options)
        result = specdec.generate(verifier, drafter, ROWS, 30, forecast=forecast, channel=channel, **options)
        assert torch.equal(result.tokens, expected.tokens)
        assert not result.metrics.faults
        assert result.metrics.mean_accepted_tokens > 2
        children.add(child_of(channel).pid)
    assert len(children) == 1
    channel.close()
    assert verifier.model.memory is not None and not alive(children.pop())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_function_makes_the_drafter_over_there(tiny_target, channel):
    verifier = FullVerifier(tiny_target)
    expected = specdec.generate(verifier, NullDrafter(), ROWS, 20)
    result = specdec.generate(
        verifier, partial(NgramDrafter, length=4), ROWS, 20, forecast=DraftTopK(1), channel=channel
    )
    assert torch.equal(result.tokens, expected.tokens)
    with pytest.raises(ValueError, match="could not be made: length must be at least 1"):
        specdec.generate(verifier, partial(NgramDrafter, length=0), [1], forecast=DraftTopK(1), channel=channel)


def test_a_killed_drafter_comes_back_and_costs_no_token(tiny_target, channel):
    verifier, drafter, forecast = FullVerifier(tiny_target), ModelDrafter(tiny_target, length=2), DraftTopK(1)
    expected = specdec.generate(verifier, NullDrafter(), [1, 2], 200)
    killed = []

    def stream(_, tokens):
        if not killed and channel._link is not None:
            killed.append(child_of(channel).pid)
            os.kill(killed[0], signal.SIGKILL)
        if killed and child_of(channel).pid != killed[0]:
            killed.append(0)
        time.sleep(0.1 if len(killed) < 150 else 0)  # the new one needs seconds to come, and nobody waits

    result = specdec.generate(verifier, drafter, [1, 2], 200, forecast=forecast, channel=channel, stream=stream)
    assert torch.equal(result.tokens, expected.tokens)
    assert any("is gone" in fault for fault in result.metrics.faults)
    assert child_of(channel).pid != killed[0]
    assert any(any(handover.hit) for handover in result.trace.handovers), "it did not come back"


class Spoiled:
    """Decodes, but for one message that is damaged and one after which nothing works."""

    def __init__(self, damaged, last):
        self.calls, self.damaged, self.last = 0, damaged, last

    def __call__(self, content):
        self.calls += 1
        if self.calls == self.last:
            raise LookupError("no such memory")
        if self.calls == self.damaged:
            content = content.replace(b"torch.int64", b"torct.int64")
        return decode(content)


def test_a_damaged_message_costs_a_round_and_an_end_says_why(tiny_target, monkeypatch):
    spoiled, channel = Spoiled(damaged=4, last=9), Process(patience=1.0)
    monkeypatch.setattr(pair, "decode", spoiled)
    verifier, pids = FullVerifier(tiny_target), []
    expected = specdec.generate(verifier, NullDrafter(), [1, 2], 120)

    def stream(_, tokens):
        pids.append(child_of(channel).pid)
        time.sleep(0.05 if len(set(pids)) < 2 else 0)  # the tokens must not run out before all has happened

    result = specdec.generate(
        verifier,
        ModelDrafter(tiny_target, length=2),
        [1, 2],
        120,
        forecast=DraftTopK(1),
        channel=channel,
        stream=stream,
    )
    channel.close()
    assert torch.equal(result.tokens, expected.tokens)
    assert spoiled.calls >= spoiled.last, "the channel ended with the damaged message"
    assert any("is gone: no such memory" in fault for fault in result.metrics.faults)
    assert len(set(pids)) > 1, "no other drafter was started"


@pytest.mark.parametrize("error", [RuntimeError("the target failed"), KeyboardInterrupt()])
def test_whatever_ends_the_target_ends_the_drafter(tiny_target, channel, error):
    def stream(_, tokens):
        raise error

    with pytest.raises(type(error)):
        specdec.generate(
            FullVerifier(tiny_target), NgramDrafter(), [1], forecast=DraftTopK(1), channel=channel, stream=stream
        )
    pid = child_of(channel).pid
    channel.close()
    assert not alive(pid)
