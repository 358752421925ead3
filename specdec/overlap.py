"""How well drafting hides behind verification, computed from a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from specdec.trace import Span, Trace

Interval = tuple[float, float]


@dataclass(frozen=True)
class Hits:
    """Outcomes of one accepted length: how many there were, and for how many a draft was ready."""

    outcomes: int
    prepared: int


@dataclass(frozen=True)
class Overlap:
    """Decoding rounds of a generation, prefill left out. Seconds are sums over these rounds.

    Attributes:
        rounds: verifications.
        seconds: from the end of prefill to the end of the last verification.
        target: the target at work.
        drafter: the drafter at work.
        exposed: the drafter at work while the target waited.
        target_idle: the target waiting, for whatever reason.
        drafter_idle: the drafter waiting.
        rendezvous: the target waiting while the drafter did not draft: verdicts, look-ups and transfers.
        hidden: share of the drafter's work that was done while the target worked; None if it did none.
        hit_rate: share of outcomes for which a draft was ready, None without outcomes.
        hits: by accepted length.
        branches: outcomes that were prepared, and of these wasted: those that did not come true.
        wasted: see ``branches``.
    """

    rounds: int
    seconds: float
    target: float
    drafter: float
    exposed: float
    target_idle: float
    drafter_idle: float
    rendezvous: float
    hidden: float | None
    hit_rate: float | None
    hits: dict[int, Hits]
    branches: int
    wasted: int

    @classmethod
    def of(cls, trace: Trace) -> Overlap:
        """Measure a finished generation."""
        targets = sorted((span.start, span.end) for span in trace.spans if span.lane == "target")
        start, end = (targets[0][1], targets[-1][1]) if targets else (0.0, 0.0)
        busy = targets[1:]
        gaps = [(before[1], after[0]) for before, after in pairwise(targets) if after[0] > before[1]]
        drafting = union(within(span, start, end) for span in trace.spans if drafts(span))
        drafter, exposed = total(drafting), total(common(drafting, gaps))
        hits = by_length(trace)
        outcomes, prepared = sum(one.outcomes for one in hits.values()), sum(one.prepared for one in hits.values())
        branches = sum(handover.branches for handover in trace.handovers)
        return cls(
            rounds=len(busy),
            seconds=end - start,
            target=total(busy),
            drafter=drafter,
            exposed=exposed,
            target_idle=total(gaps),
            drafter_idle=end - start - drafter,
            rendezvous=total(gaps) - exposed,
            hidden=1 - exposed / drafter if drafter > 0 else None,
            hit_rate=prepared / outcomes if outcomes else None,
            hits=hits,
            branches=branches,
            wasted=branches - prepared,
        )


def by_length(trace: Trace) -> dict[int, Hits]:
    """Hits by the accepted length of the outcome; rounds that ended their row have none."""
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    seen: dict[int, list[Any]] = defaultdict(list)
    for entry in trace.rounds:
        seen[entry.row].append(entry)
    for row, entries in seen.items():
        for entry, handover in zip(entries[:-1], trace.handovers, strict=False):
            counts[entry.accepted][0] += 1
            counts[entry.accepted][1] += handover.hit[row]
    return {length: Hits(*pair) for length, pair in sorted(counts.items())}


def drafts(span: Span) -> bool:
    """Whether a span is the drafter's work: reading, branching and drafting, not looking up."""
    return span.lane in ("drafter", "drafter.look", "drafter.branch", "drafter.draft")


def within(span: Span, start: float, end: float) -> Interval:
    """The part of a span between two times."""
    return max(span.start, start), min(span.end, end)


def union(intervals: Any) -> list[Interval]:
    """Intervals without overlaps, in order."""
    merged: list[Interval] = []
    for start, end in sorted(one for one in intervals if one[1] > one[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Where intervals of both lists overlap; each list is without overlaps."""
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in some for b in others)
    return [pair for pair in pairs if pair[1] > pair[0]]


def total(intervals: Sequence[Interval]) -> float:
    """Their length together."""
    return sum(end - start for start, end in intervals)
