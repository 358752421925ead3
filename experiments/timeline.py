"""A few rounds of a trace as a picture for a page: ``python -m experiments.timeline TRACE.json --out x.png``.

Reads what ``specdec.perfetto`` has written, such as trace.json of a run's folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """A span of a trace, see ``specdec.trace.Span``; milliseconds, and what is known besides."""

    lane: str
    start: float
    end: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what the command line names; leaves with a line where that cannot be."""
    options = parsed(arguments)
    try:
        events = rounds_of(generation(read(options.trace), options.arm), options.rounds)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    from experiments.timeline_plot import save_timeline  # here: mistakes are answered at once

    save_timeline(options.out, events)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--out", type=Path, default=Path("timeline.png"))
    parser.add_argument("--rounds", default="2:5", help="first and the one behind the last; 0 is prefill")
    parser.add_argument("--arm", help="which generation of the file, by its name; the last if not given")
    return parser.parse_args(arguments)


def read(path: Path) -> dict[str, list[Event]]:
    """The generations of a file, by name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no trace of this project.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
        found: dict[str, list[Event]] = {name: [] for name in names.values()}
        for event in events:
            if event["ph"] in ("X", "i"):
                start, length = event["ts"] / 1e3, event.get("dur", 0.0) / 1e3
                found[names[event["pid"]]].append(Event(event["cat"], start, start + length, event["args"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no trace of specdec: pass a file that specdec.perfetto wrote") from error
    return found


def generation(found: Mapping[str, list[Event]], arm: str | None) -> list[Event]:
    """The events of an arm, the last one if it is None. Raises ValueError if it is not there."""
    if not found:
        raise ValueError("the trace is empty")
    name = list(found)[-1] if arm is None else arm
    if name not in found:
        raise ValueError(f"the trace has no arm {name!r}: choose --arm among {', '.join(found)}")
    return found[name]


def rounds_of(events: Sequence[Event], rounds: str) -> list[Event]:
    """What happens from the start of one round to that of another, counted from the first's start.

    A round starts with its verification. What began before or goes on behind is cut there.

    Raises:
        ValueError: ``rounds`` is not two numbers with a colon, or there are no such rounds.
    """
    starts = sorted(event.start for event in events if event.lane == "target")
    first, _, last = rounds.partition(":")
    if not (first.isdigit() and last.isdigit()):
        raise ValueError(f"--rounds must be two numbers with a colon, such as 3:6, not {rounds!r}")
    low, high = int(first), int(last)
    if not low < high <= len(starts):
        raise ValueError(f"--rounds {rounds} is not within the trace, which has rounds 0:{len(starts)}")
    begin = starts[low]
    end = starts[high] if high < len(starts) else max(event.end for event in events)
    shown = [event for event in events if event.start < end and (event.end > begin or event.start >= begin)]
    cut = [replace(event, start=max(event.start, begin), end=min(event.end, end)) for event in shown]
    return [replace(event, start=event.start - begin, end=event.end - begin) for event in cut]


if __name__ == "__main__":
    main()
