"""Traces as a file that ui.perfetto.dev and chrome://tracing open (the JSON of Chrome's trace events).

Every generation is a process of the file, every lane a thread: "X" events for spans, "i" for the moment of an
early exit, "s" and "f" for the arrow from a message to what is done with it. Times are microseconds from the first
span. Spans of one thread must nest, and messages need not: each kind of them has a thread of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

from specdec.trace import Round, Span, Trace

Event = dict[str, Any]

TRACKS = ("host", "target", "link.early", "link.outcome", "link.draft", "drafter")  # top to bottom
NAMES = {
    "target": "verify",
    "target.exit": "early exit",
    "target.hint": "hand over",
    "drafter": "draft",
    "link.early": "early exit →",
    "link.outcome": "outcome →",
    "link.draft": "← draft",
}
RECEIVERS = {"link.early": "drafter", "link.outcome": "drafter", "link.draft": "target"}


def save(path: str | PathLike[str], traces: Mapping[str, Trace]) -> None:
    """Write finished generations, by what they are to be called. Raises OSError where that cannot be."""
    Path(path).write_text(json.dumps(document(traces)), encoding="utf-8")


def document(traces: Mapping[str, Trace]) -> dict[str, Any]:
    """The same as one JSON object."""
    origin = min((span.start for trace in traces.values() for span in trace.spans), default=0.0)
    numbers = count(1)
    events = [
        event
        for pid, (name, trace) in enumerate(traces.items(), start=1)
        for event in process(pid, name, trace, origin, numbers)
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def process(pid: int, name: str, trace: Trace, origin: float, numbers: Iterator[int]) -> Iterator[Event]:
    """All events of one generation; ``numbers`` gives ids that are new in the file."""
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    spans = numbered(trace)
    # Of two that begin together the longer one holds the other.
    spans.sort(key=lambda span: (span.start, -span.end))
    threads: dict[str, int] = {}
    for track in sorted({track_of(span) for span in spans}, key=TRACKS.index):
        threads[track] = tid = next(numbers)
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}
    facts = facts_of(trace)
    for span in spans:
        event = event_of(span, origin) | {"pid": pid, "tid": threads[track_of(span)]}
        yield event | {"args": facts.get((span.lane, span.round), {}) | rounds_of(span)}
        receiver = threads.get(RECEIVERS.get(span.lane, ""))
        if receiver is not None:
            arrow = {"name": span.lane, "cat": "arrow", "id": next(numbers), "pid": pid}
            yield arrow | {"ph": "s", "ts": event["ts"], "tid": event["tid"]}
            yield arrow | {"ph": "f", "ts": microseconds(span.end, origin), "tid": receiver}


def track_of(span: Span) -> str:
    """The thread that a span is drawn on."""
    return span.lane if span.lane in TRACKS else span.lane.partition(".")[0]


def event_of(span: Span, origin: float) -> Event:
    """A span, or a moment, as an event without its place."""
    start, end = microseconds(span.start, origin), microseconds(span.end, origin)
    event = {"name": NAMES.get(span.lane, span.lane.partition(".")[2]), "cat": span.lane, "ts": start}
    return event | (
        {"ph": "i", "s": "t"} if span.lane == "target.exit" else {"ph": "X", "dur": round(end - start, 3)}
    )


def microseconds(time: float, origin: float) -> float:
    """A time in the file, to the nanosecond."""
    return round(1e6 * (time - origin), 3)


def rounds_of(span: Span) -> dict[str, int]:
    """The round, where it is known."""
    return {} if span.round is None else {"round": span.round}


def numbered(trace: Trace) -> list[Span]:
    """All spans; those of the target, which come in order, with the number of their round."""
    targets = sorted((span for span in trace.spans if span.lane == "target"), key=lambda span: span.start)
    counted = [Span(span.lane, span.start, span.end, index) for index, span in enumerate(targets)]
    return [*counted, *(span for span in trace.spans if span.lane != "target")]


def facts_of(trace: Trace) -> dict[tuple[str, int | None], dict[str, Any]]:
    """What is known besides times, by lane and round: what was accepted, and what prepared drafts came to."""
    by_row: dict[int, list[Round]] = defaultdict(list)
    for entry in trace.rounds:
        by_row[entry.row].append(entry)
    facts: dict[tuple[str, int | None], dict[str, Any]] = {}
    for index in range(max(map(len, by_row.values()), default=0)):
        here = [entries[index] for entries in by_row.values() if index < len(entries)]
        facts["target", index] = {
            name: [getattr(entry, name) for entry in here] for name in ("drafted", "accepted", "committed")
        }
    for index, handover in enumerate(trace.handovers):
        facts["drafter.branch", index] = {"branches": handover.branches, "hit": list(handover.hit)}
    return facts
