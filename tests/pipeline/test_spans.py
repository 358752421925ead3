"""A trace holds what happened on every lane, whichever way the two sides talk, and causes come before effects.

Times of two processes are compared here: one clock counts for both.
"""

from __future__ import annotations

import pytest

import specdec
from drafters import ModelDrafter
from specdec.channel import Inline, Process, Thread
from specdec.exit import Exit
from specdec.forecast import DraftTopK, EarlyExitTopK
from specdec.metrics import Metrics
from specdec.overlap import Overlap
from verifiers import FullVerifier

ROWS = [[1, 2, 3, 1, 2]]


@pytest.fixture(params=["inline", "thread", "process"])
def channel(request):
    if request.param != "process":
        yield {"inline": Inline, "thread": lambda: Thread(patience=60)}[request.param]()
        return
    made = Process(patience=60)
    yield made
    made.close()


def traced(target, draft, channel, forecast):
    drafter = ModelDrafter(draft, length=3)
    return specdec.generate(FullVerifier(target), drafter, ROWS, 24, forecast=forecast, channel=channel).trace


def lane(trace, name):
    """Spans of a lane by round; a round has one at most."""
    spans = [span for span in trace.spans if span.lane == name]
    assert len({span.round for span in spans}) == len(spans)
    return {span.round: span for span in spans}


def test_every_message_and_what_it_led_to(tiny_target, tiny_draft, channel):
    trace = traced(tiny_target, tiny_draft, channel, EarlyExitTopK(Exit(2, 4)))
    targets = sorted((span for span in trace.spans if span.lane == "target"), key=lambda span: span.start)
    every, answered = set(range(len(targets))), set(range(len(targets) - 1))
    assert len(answered) == len(trace.handovers) > 4
    exits, waits, sends = lane(trace, "target.exit"), lane(trace, "host.wait"), lane(trace, "host.send")
    early, outcome, draft = (lane(trace, f"link.{kind}") for kind in ("early", "outcome", "draft"))
    settle, branch, fresh = (lane(trace, f"drafter.{part}") for part in ("settle", "branch", "draft"))
    assert set(exits) == every and not any(exits[index].seconds for index in every)
    for spans in (early, outcome, draft, settle, waits, sends):
        assert set(spans) == answered
    for index in answered:
        order = [targets[index].start, exits[index].start, early[index].start, targets[index].end]
        order += [sends[index].start, outcome[index].start, outcome[index].end, settle[index].start]
        order += [fresh.get(index, settle[index]).end, draft[index].start, draft[index].end]
        order += [waits[index].end, targets[index + 1].start]
        assert order == sorted(order)
        if index in branch:
            assert early[index].end <= branch[index].start <= branch[index].end <= settle[index].start
    hits = [all(handover.hit) for handover in trace.handovers]
    assert all(hits[index] for index in answered - set(fresh)), "neither prepared nor drafted"


def test_in_one_thread_nothing_is_hidden(tiny_target, tiny_draft):
    """The drafter works inside the target's forward, or between two of them: at no time do both work."""
    for forecast in (DraftTopK(2), EarlyExitTopK(Exit(2, 4))):
        trace = traced(tiny_target, tiny_draft, Inline(), forecast)
        overlap = Overlap.of(trace)
        assert overlap.drafter > 0 and overlap.hidden == pytest.approx(0, abs=1e-9)
        assert overlap.target + overlap.drafter + overlap.rendezvous == pytest.approx(overlap.seconds)
        forwards, hints = trace.seconds("target"), [span for span in trace.spans if span.lane == "target.hint"]
        assert bool(hints) == (forecast.exit is not None)
        waited = sum(span.seconds for span in hints)
        assert Metrics.of(trace).target_seconds == pytest.approx(forwards - waited)


def test_the_host_plays_every_verification(tiny_target, tiny_draft, channel):
    trace = traced(tiny_target, tiny_draft, channel, DraftTopK(2))
    played = sorted((span.start, span.end) for span in trace.spans if span.lane == "host.verify")
    targets = sorted((span.start, span.end) for span in trace.spans if span.lane == "target")
    assert len(played) == len(targets) == len(trace.handovers) + 1
    assert all(low <= start and end <= high for (low, high), (start, end) in zip(played, targets, strict=True))
    assert not [span for span in trace.spans if span.lane in ("target.exit", "link.early")]


def test_in_turns_there_is_no_other_side(tiny_target, tiny_draft):
    trace = specdec.generate(FullVerifier(tiny_target), ModelDrafter(tiny_draft, length=3), ROWS, 24).trace
    lanes = {span.lane for span in trace.spans}
    assert lanes == {"target", "drafter", "drafter.model", "host.verify", "host.propose"}
    assert all(span.round is None for span in trace.spans)
