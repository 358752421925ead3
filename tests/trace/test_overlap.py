"""What overlap came to, against figures worked out by hand."""

from __future__ import annotations

import json

import pytest

from specdec import Metrics, Trace
from specdec.overlap import Hits, Named, Overlap
from specdec.trace import Handover, Round, Span


def made():
    """Two rows, five verifications. Row 1 ends in the fourth."""
    trace = Trace(start=0, end=61)
    trace.spans = [
        Span("drafter", 0, 1),  # reads the prompt
        Span("target", 1, 10),  # prefill
        Span("drafter.branch", 5, 8, 0),
        Span("drafter.settle", 11, 12, 0),
        Span("drafter.draft", 12, 14, 0),
        Span("target", 15, 25),
        Span("drafter.look", 15, 17, 1),
        Span("target.hint", 18, 20, 1),
        Span("drafter.branch", 19, 27, 1),
        Span("drafter.settle", 27, 28, 1),
        Span("target", 28, 38),
        Span("drafter.branch", 30, 36, 2),
        Span("drafter.draft", 39, 40, 2),
        Span("target", 40, 48),
        Span("target", 50, 60),
        Span("drafter.look", 59, 61, 4),
    ]
    # row, drafted, nodes, accepted, committed; the first of each row is prefill
    rows = {0: [(0, 1), (3, 4), (1, 2), (1, 2), (2, 3)], 1: [(0, 1), (1, 2), (0, 1), (3, 4)]}
    trace.rounds = [Round(row, 3, 3, *counts) for row, rounds in rows.items() for counts in rounds]
    trace.handovers = [
        Handover((False, False), 20),  # prefill's
        Handover((True, True), 9, ((0.5, 0.25, 0.75, 1.0), (0.5, 0.5))),
        Handover((True, False), 8, ((0.0, 1.0), (0.25,))),
        Handover((False, False), 7),  # row 1 has ended, row 0 goes on; nobody looked at what was named
        Handover((False, False), 6),  # a device is told of an outcome that no row goes on from
    ]
    return trace


def test_times():
    found = Overlap.of(made())
    assert (found.rounds, found.seconds) == (4, 50)  # 10 to 60
    # The target waits from 10 to 15, 18 to 20, 25 to 28, 38 to 40 and 48 to 50.
    assert (found.target, found.target_idle) == (36, 14)
    # The drafter works from 12 to 14, 15 to 17, 19 to 27, 30 to 36, 39 to 40 and 59 to 60.
    assert (found.drafter, found.drafter_idle) == (20, 30)
    # Of these not beside the target: 12 to 14, 19 to 20, 25 to 27, 39 to 40.
    assert (found.exposed, found.rendezvous) == (6, 8)
    assert found.hidden == pytest.approx(14 / 20)


def test_hits_are_of_windows_and_of_rows_that_went_on():
    found = Overlap.of(made())
    assert found.hits == {0: Hits(1, 0), 1: Hits(3, 2), 3: Hits(1, 1)}
    assert (found.prepared, found.hit_rate) == (3, 3 / 5)
    assert [found.hits[length].rate for length in (0, 1, 3)] == [0, 2 / 3, 1]


def test_what_was_named_early_is_counted_by_position():
    found = Overlap.of(made())
    assert found.omega == {0: Named(4, 1.25), 1: Named(3, 1.75), 2: Named(1, 0.75), 3: Named(1, 1.0)}
    assert [found.omega[place].mean for place in (0, 3)] == [0.3125, 1.0]


def test_branches_and_fallbacks():
    found = Overlap.of(made())
    assert (found.handovers, found.branches, found.wasted) == (3, 9 + 8 + 7, 9 + 8 + 7 - 3)
    assert (found.fallbacks, found.fallback) == (2, 2 / 3)


def test_several_generations_and_the_way_through_a_file():
    one, other = Overlap.of(made()), made()
    other.handovers[2] = Handover((True, True), 1)
    both = Overlap.pooled([one, Overlap.of(other)])
    assert (both.rounds, both.seconds, both.exposed, both.handovers) == (8, 100, 12, 6)
    assert (both.branches, both.fallbacks) == (24 + 17, 2 + 1)
    assert both.hits == {0: Hits(2, 1), 1: Hits(6, 4), 3: Hits(2, 2)}
    assert (both.hidden, both.hit_rate) == (pytest.approx(14 / 20), 7 / 10)
    stored = json.loads(json.dumps(both.as_dict()))
    assert Overlap.read(stored) == both
    assert (stored["wasted"], stored["fallback"], stored["hit_rate"]) == (34, 3 / 6, 7 / 10)


def test_metrics_say_the_same():
    metrics = Metrics.of(made())
    assert metrics.overlap == Overlap.of(made())
    assert (metrics.drafter_seconds, metrics.exposed_seconds) == (20, 6)
    assert metrics.target_seconds == 9 + 36
    assert metrics.host_seconds == 61 - 45 - 6
    assert (metrics.hit_rate, metrics.hidden) == (3 / 5, pytest.approx(14 / 20))
    assert metrics.as_dict()["overlap"] == Overlap.of(made()).as_dict()


def test_in_turns_all_drafting_is_exposed_and_nothing_is_handed_over():
    trace = Trace(spans=[Span("target", 0, 1), Span("drafter", 1, 3), Span("target", 4, 6)], end=6)
    trace.rounds = [Round(0, 0, 0, 0, 1), Round(0, 3, 3, 1, 2)]
    found, metrics = Overlap.of(trace), Metrics.of(trace)
    assert (found.exposed, found.rendezvous, found.hidden, found.hits) == (2, 1, 0, {})
    assert (found.hit_rate, found.fallback, found.branches) == (None, None, 0)
    assert metrics.overlap is None and metrics.hit_rate is None
    assert metrics.drafter_seconds == metrics.exposed_seconds == 2


def test_where_prefill_is_all_there_is_nothing_to_measure():
    trace = Trace(spans=[Span("target", 0, 1)], rounds=[Round(0, 0, 0, 0, 1)], handovers=[Handover((False,), 4)])
    found = Overlap.of(trace)
    assert (found.rounds, found.seconds, found.branches, found.handovers) == (0, 0, 0, 0)
    assert (found.hidden, found.hit_rate, found.fallback) == (None, None, None)
    assert Overlap.of(Trace()) == found
