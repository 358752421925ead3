"""Windows that are lost or late, drafters that are stuck, and what is refused before anything begins."""

from __future__ import annotations

import logging
import math
import threading
from contextlib import contextmanager

import pytest
import torch

import specdec
from drafters import ModelDrafter, NullDrafter
from specdec.channel import Inline, Process, Thread
from specdec.channel.inline import InlineLink
from specdec.channel.sides import worker_for
from specdec.exit import Exit
from specdec.forecast import AllAccepted, Blend, DraftTopK, EarlyExitTopK
from specdec.messages import Opening, Outcome, Ready, Window
from verifiers import FullVerifier

ROUND = 3  # whose window does not come in time
NEW = 40


class Slow(InlineLink):
    """The window of one round comes later, as often as is said; 0 loses it."""

    def __init__(self, worker, copies):
        super().__init__(worker)
        self._copies, self._taken, self._late = copies, False, []

    def receive(self, timeout):
        message = super().receive(timeout)
        if self._taken or not isinstance(message, Window) or message.round != ROUND:
            return message
        self._taken, self._late = True, [message] * self._copies
        return None

    def send(self, message):
        super().send(message)
        self._answers.extendleft(self._late)  # they stand before the next answer
        self._late = []


class Reading(InlineLink):
    """Nobody hears that the prompt has been read."""

    def receive(self, timeout):
        message = super().receive(timeout)
        if not isinstance(message, Ready):
            return message
        assert timeout > 30, "a prompt takes longer than a round"
        return None


class Again(InlineLink):
    """The opening comes once more in the middle of the reply."""

    def send(self, message):
        super().send(message)
        if isinstance(message, Opening):
            self._opening = message
        elif isinstance(message, Outcome) and message.round == ROUND:
            super().send(self._opening)


class Through(Inline):
    """A channel over such a link."""

    def __init__(self, make):
        object.__setattr__(self, "make", make)

    @contextmanager
    def link(self, drafter, forecast, verifier, clock):
        yield self.make(worker_for(drafter, forecast, verifier, clock))


def run(target, drafter, forecast, channel, new=NEW):
    return specdec.generate(FullVerifier(target), drafter, [1, 2, 3], new, forecast=forecast, channel=channel)


def test_an_opening_that_comes_again_changes_nothing(tiny_target):
    drafter = ModelDrafter(tiny_target, length=3)
    once, twice = (run(tiny_target, drafter, DraftTopK(2), Through(link)) for link in (InlineLink, Again))
    assert torch.equal(twice.tokens, once.tokens) and not twice.metrics.faults
    assert twice.metrics.mean_accepted_tokens == once.metrics.mean_accepted_tokens > 2


@pytest.mark.parametrize("shape", [{}, {"width": 2, "nodes": 5}], ids=["chain", "tree"])
@pytest.mark.parametrize("forecast", [DraftTopK(4), EarlyExitTopK(Exit(2, 4), None), Blend(Exit(2, 4), top=4)])
def test_a_lost_window_costs_its_round_only(tiny_target, tiny_draft, forecast, shape, monkeypatch):
    drafter, forgotten = ModelDrafter(tiny_draft, length=3, **shape), []
    monkeypatch.setattr(drafter.model, "forget", lambda: forgotten.append(True))
    plain = specdec.generate(FullVerifier(tiny_target), NullDrafter(), [1, 2, 3], NEW)
    result = run(tiny_target, drafter, forecast, Through(lambda worker: Slow(worker, 0)))
    assert result.row() == plain.row()
    assert dict(result.metrics.faults) == {"drafter: no draft in time": 1}
    assert not forgotten
    lost, after = result.trace.handovers[ROUND : ROUND + 2]
    assert lost.branches == 0 < after.branches, "nothing was prepared while the target went without a window"
    if forecast.exit is not None:  # what the exit says behind the last token, and what the drafter does
        assert after.branches <= 8


def test_a_prompt_that_is_not_read_in_time_is_reported_and_decoding_goes_on(tiny_target):
    drafter = ModelDrafter(tiny_target, length=3)
    plain = run(tiny_target, NullDrafter(), None, Inline())
    result = run(tiny_target, drafter, DraftTopK(2), Through(Reading))
    assert result.row() == plain.row()
    assert dict(result.metrics.faults) == {"drafter: has not read the prompt in time": 1}
    assert result.metrics.mean_accepted_tokens > 1.5, "it drafts once it has caught up"


class Tired(ModelDrafter):
    """It prepares nothing, so that it drafts every round, and fails in one of them."""

    drafts = 0

    def draft(self, context, noise):
        self.drafts += 1
        if self.drafts == ROUND + 1:
            raise RuntimeError("my own mistake")
        return super().draft(context, noise)

    def branch(self, context, window, outcomes, noise):
        raise RuntimeError("nothing is prepared")


@pytest.mark.parametrize("copies", [1, 3])
def test_a_late_window_tells_what_was_done_and_went_wrong_once(tiny_target, copies):
    result = run(
        tiny_target, Tired(tiny_target, length=3), DraftTopK(1), Through(lambda worker: Slow(worker, copies))
    )
    assert result.metrics.faults["drafter: no draft in time"] == 1
    assert result.metrics.faults["Tired: raised RuntimeError: my own mistake"] == 1
    assert result.metrics.faults["Tired: raised RuntimeError: nothing is prepared"] == len(result.trace.handovers)
    for lane in ("drafter.look", "drafter.draft", "link.outcome", "link.draft"):
        assert len([span for span in result.trace.spans if (span.lane, span.round) == (lane, ROUND)]) == 1


@pytest.mark.parametrize("copies", [1, 3])
def test_what_was_prepared_for_a_late_window_is_counted(tiny_target, copies):
    expected = run(tiny_target, ModelDrafter(tiny_target, length=3), DraftTopK(2), Inline())
    result = run(
        tiny_target,
        ModelDrafter(tiny_target, length=3),
        DraftTopK(2),
        Through(lambda worker: Slow(worker, copies)),
    )
    assert result.trace.handovers[ROUND].hit == (False,) != expected.trace.handovers[ROUND].hit
    assert result.trace.handovers[ROUND].branches == expected.trace.handovers[ROUND].branches > 0


class Stuck(NullDrafter):
    """It waits for what comes only after the generation."""

    def draft(self, context, noise):
        self.released.wait(60)
        return super().draft(context, noise)


def test_a_stuck_drafter_does_not_hold_up_the_result(tiny_target, caplog):
    drafter = Stuck()
    drafter.released = threading.Event()
    before = set(threading.enumerate())
    with caplog.at_level(logging.WARNING):
        result = run(tiny_target, drafter, AllAccepted(), Thread(patience=0.05), 20)
    (left,) = set(threading.enumerate()) - before
    drafter.released.set()
    assert len(result.row()) == 20
    assert any("left behind" in record.message for record in caplog.records)
    left.join(60)
    assert not left.is_alive(), "it ends when it is done"


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, 1e300])
@pytest.mark.parametrize(
    "make",
    [lambda one: Thread(patience=one), lambda one: Process(patience=one), lambda one: Process(meeting=one)],
)
def test_nobody_waits_without_end_or_for_no_time(make, seconds):
    with pytest.raises(ValueError, match=r"must be above 0 seconds"):
        make(seconds)


@pytest.mark.parametrize("options", [{"layer": 0.5}, {"layer": "2"}, {"top": 2.5}])
def test_an_exit_is_a_whole_layer(options):
    with pytest.raises(ValueError, match="whole numbers"):
        Exit(**options)


class Mistaken(NullDrafter):
    """Has a mistake."""

    def begin(self, target, seq):
        raise TypeError("no such argument")


@pytest.mark.parametrize("make", [Inline, Thread, Process])
def test_a_mistake_when_decoding_begins_is_said_alike(tiny_target, make):
    channel = make()
    with pytest.raises(ValueError, match="cannot begin: TypeError: no such argument"):
        run(tiny_target, Mistaken(), DraftTopK(1), channel)
    if isinstance(channel, Process):
        channel.close()
