"""Traces as trace events: all that was recorded is there, in order, and as viewers of the format want it."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from specdec import Trace, perfetto
from specdec.trace import Handover, Round, Span


def traced(start=100.0):
    """Two rounds of one row; times are such that milliseconds come out whole."""
    spans = [
        Span("host.verify", 0, 9),
        Span("target", 1, 8),
        Span("target.exit", 4, 4, 0),
        Span("link.early", 4, 5, 0),
        Span("drafter.look", 0, 3, 0),
        Span("drafter.branch", 5, 12, 0),
        Span("link.outcome", 9, 10, 0),
        Span("host.wait", 10, 16, 0),
        Span("drafter.settle", 12, 13, 0),
        Span("drafter.draft", 13, 14, 0),
        Span("link.draft", 14, 15, 0),
        Span("host.verify", 16, 25),
        Span("target", 17, 24),
    ]
    trace = Trace(rounds=[Round(0, 0, 0, 0, 1), Round(0, 3, 3, 2, 3)], handovers=[Handover((True,), 6)])
    # Recorded in another order than they happened: drafters report late.
    trace.spans = [Span(s.lane, start + s.start / 1e3, start + s.end / 1e3, s.round) for s in reversed(spans)]
    return trace


@pytest.fixture
def events(tmp_path):
    perfetto.save(tmp_path / "trace.json", {"one": traced(), "two": traced(101.0)})
    return json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def names(events, kind):
    return {event["tid"]: event["args"]["name"] for event in events if event["name"] == kind}


def test_every_span_is_there_with_its_times(events):
    for pid, trace, origin in ((1, traced(), 0), (2, traced(101.0), 1e6)):
        read = sorted(
            (event["cat"], event["ts"], event["ts"] + event.get("dur", 0))
            for event in events
            if event["ph"] in ("X", "i") and event["pid"] == pid
        )
        spans = ((s.lane, s.start - trace.spans[-1].start, s.end - trace.spans[-1].start) for s in trace.spans)
        wanted = sorted((lane, origin + 1e6 * start, origin + 1e6 * end) for lane, start, end in spans)
        assert [lane for lane, *_ in read] == [lane for lane, *_ in wanted]
        for found, right in zip(read, wanted, strict=True):
            assert found[1:] == pytest.approx(right[1:], abs=1e-2)


def test_times_are_in_order_and_never_negative(events):
    times = defaultdict(list)
    for event in events:
        if event["ph"] in ("X", "i"):
            times[event["pid"]].append(event["ts"])
            assert event["ts"] >= 0 and event.get("dur", 0) >= 0
    assert all(ordered == sorted(ordered) for ordered in times.values())


def test_every_lane_is_a_thread_of_its_own_and_named(events):
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert processes == {1: "one", 2: "two"}
    threads = names(events, "thread_name")
    assert sorted(threads.values()) == sorted(perfetto.TRACKS * 2)  # so no id is given twice
    for event in events:
        if event["ph"] in ("X", "i"):
            assert event["cat"].startswith(threads[event["tid"]]) and event["name"]


def nests(spans):
    """Whether spans of one thread lie in or behind each other, as the format asks for."""
    open_until = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_until and open_until[-1] <= start:
            open_until.pop()
        if open_until and end > open_until[-1]:
            return False
        open_until.append(end)
    return True


def test_spans_of_a_thread_nest_though_messages_overlap():
    trace = traced()
    late = [Span("link.early", 100.004, 100.0095, 0) if s.lane == "link.early" else s for s in trace.spans]
    trace.spans = late
    by_thread = defaultdict(list)
    for event in perfetto.document({"one": trace})["traceEvents"]:
        if event["ph"] == "X":
            by_thread[event["tid"]].append((event["ts"], round(event["ts"] + event["dur"], 3)))
    assert all(nests(spans) for spans in by_thread.values())
    links = [(s.start, s.end) for s in trace.spans if s.lane.startswith("link.") or s.lane == "target.exit"]
    assert not nests(links), "nothing overlapped: the test shows nothing"


def test_arrows_leave_within_a_message_and_arrive_before_what_is_done_with_it(events):
    threads, starts = names(events, "thread_name"), [event for event in events if event["ph"] == "s"]
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    assert len(starts) == len(ends) == len({event["id"] for event in starts}) == 6
    found = []
    for event in starts:
        # An arrow starts at the open span of its thread, and without "bp" ends at the next one.
        (source,) = [e for e in events if e["ph"] == "X" and e["tid"] == event["tid"] and e["ts"] == event["ts"]]
        assert events.index(source) < events.index(event)
        end = ends[event["id"]]
        assert "bp" not in end and (end["name"], end["cat"]) == (event["name"], event["cat"])
        behind = [e for e in events if e["ph"] == "X" and e["tid"] == end["tid"] and e["ts"] >= end["ts"]]
        found.append((threads[event["tid"]], min(behind, key=lambda e: e["ts"])["cat"]))
    assert found == 2 * [
        ("link.early", "drafter.branch"),
        ("link.outcome", "drafter.settle"),
        ("link.draft", "target"),
    ]


def test_rounds_say_what_came_of_them(events):
    facts = [event["args"] for event in events if event.get("cat") in ("target", "drafter.branch")][:3]
    assert facts == [
        {"drafted": [0], "accepted": [0], "committed": [1], "round": 0},
        {"branches": 6, "hit": [True], "round": 0},
        {"drafted": [3], "accepted": [2], "committed": [3], "round": 1},
    ]


def test_moments_have_no_length_and_belong_to_their_thread(events):
    moments = [event for event in events if event["ph"] == "i"]
    assert len(moments) == 2
    assert all(event["s"] == "t" and "dur" not in event and event["cat"] == "target.exit" for event in moments)


def test_an_empty_trace_is_a_file_too():
    assert perfetto.document({"none": Trace()})["traceEvents"][0]["args"] == {"name": "none"}
    assert perfetto.document({}) == {"traceEvents": [], "displayTimeUnit": "ms"}
