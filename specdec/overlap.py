"""How well drafting hides behind verification, computed from a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, TypeVar

from specdec.trace import Round, Span, Trace

Interval = tuple[float, float]
C = TypeVar("C", "Hits", "Named")


@dataclass(frozen=True)
class Hits:
    """Outcomes of one accepted length: how many there were, and for how many a draft was ready."""

    outcomes: int
    prepared: int

    def __add__(self, other: Hits) -> Hits:
        return Hits(self.outcomes + other.outcomes, self.prepared + other.prepared)

    @property
    def rate(self) -> float | None:
        """Share that was ready, None without outcomes."""
        return self.prepared / self.outcomes if self.outcomes else None


@dataclass(frozen=True)
class Named:
    """Places at one position of a window: how many decoding has reached, and the law's mass on what was named."""

    places: int
    mass: float

    def __add__(self, other: Named) -> Named:
        return Named(self.places + other.places, self.mass + other.mass)

    @property
    def mean(self) -> float:
        """Omega at this position."""
        return self.mass / self.places


TABLES: dict[str, type[Hits] | type[Named]] = {"hits": Hits, "omega": Named}


@dataclass(frozen=True)
class Overlap:
    """Decoding rounds of a generation, or of several. Seconds are sums over these rounds.

    Prefill and its hand-over are left out: no window's outcome is handed over there. The time from its end to the
    first verification of a window is the first round's.

    Attributes:
        rounds: verifications.
        seconds: from the end of prefill to the end of the last verification.
        target: the target at work.
        drafter: the drafter at work.
        exposed: the drafter at work while the target was not.
        target_idle: the target waiting, for whatever reason.
        drafter_idle: the drafter waiting.
        rendezvous: neither at work: messages on their way, verdicts, look-ups and transfers.
        handovers: outcomes of a round that were handed over, all rows together, with which some row went on.
        fallbacks: those in which such a row had no draft ready: it waited for a fresh one, or went without.
        branches: outcomes that had been prepared for them.
        hits: by accepted length, of rows that went on.
        omega: by position of the window, the mass of the law that is decoded on the tokens that the target's early
            exit had named; empty where nobody looked, see ``Handover``.
    """

    rounds: int
    seconds: float
    target: float
    drafter: float
    exposed: float
    target_idle: float
    drafter_idle: float
    rendezvous: float
    handovers: int
    fallbacks: int
    branches: int
    hits: dict[int, Hits]
    omega: dict[int, Named]

    @property
    def prepared(self) -> int:
        """Outcomes for which a draft was ready."""
        return sum(one.prepared for one in self.hits.values())

    @property
    def wasted(self) -> int:
        """Branches that did not come true."""
        return self.branches - self.prepared

    @property
    def hidden(self) -> float | None:
        """Share of the drafter's work that was done while the target worked, None if it did none."""
        return 1 - self.exposed / self.drafter if self.drafter > 0 else None

    @property
    def hit_rate(self) -> float | None:
        """Share of outcomes for which a draft was ready, None without outcomes."""
        return Hits(sum(one.outcomes for one in self.hits.values()), self.prepared).rate

    @property
    def fallback(self) -> float | None:
        """Share of hand-overs in which some row had no draft ready, None without any."""
        return self.fallbacks / self.handovers if self.handovers else None

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        ratios = {name: getattr(self, name) for name in ("wasted", "hidden", "hit_rate", "fallback")}
        return asdict(self) | ratios

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> Overlap:
        """What ``as_dict`` gave, or what a file made of it."""
        tables = {
            name: {int(place): kind(**counts) for place, counts in figures[name].items()}
            for name, kind in TABLES.items()
        }
        return cls(**{field.name: figures[field.name] for field in fields(cls)} | tables)

    @classmethod
    def pooled(cls, several: Sequence[Overlap]) -> Overlap:
        """Several generations together."""
        names = [field.name for field in fields(cls) if field.name not in TABLES]
        sums = {name: sum(getattr(one, name) for one in several) for name in names}
        hits, omega = pooled(one.hits for one in several), pooled(one.omega for one in several)
        return cls(**sums, hits=hits, omega=omega)

    @classmethod
    def of(cls, trace: Trace) -> Overlap:
        """Measure a finished generation."""
        targets = sorted((span.start, span.end) for span in trace.spans if span.lane == "target")
        start, end = (targets[0][1], targets[-1][1]) if targets else (0.0, 0.0)
        gaps = [(before[1], after[0]) for before, after in pairwise(targets)]
        pauses = [within(span, start, end) for span in trace.spans if span.lane == "target.hint"]
        idle = union([*gaps, *pauses])
        drafting = union(within(span, start, end) for span in trace.spans if drafts(span))
        drafter, exposed = total(drafting), total(common(drafting, idle))
        met = list(outcomes(trace))
        rounds = {one.round for one in met}
        return cls(
            rounds=len(targets[1:]),
            seconds=end - start,
            target=total(targets[1:]) - total(common(union(targets[1:]), union(pauses))),
            drafter=drafter,
            exposed=exposed,
            target_idle=total(idle),
            drafter_idle=end - start - drafter,
            rendezvous=total(idle) - exposed,
            handovers=len(rounds),
            fallbacks=len({one.round for one in met if not one.hit}),
            branches=sum(trace.handovers[index].branches for index in rounds),
            hits=pooled({one.accepted: Hits(1, int(one.hit))} for one in met),
            omega=pooled({place: Named(1, mass)} for one in met for place, mass in enumerate(one.omega)),
        )


@dataclass(frozen=True)
class Met:
    """An outcome that its row went on from: its round, how many tokens were accepted, and see ``Handover``."""

    round: int
    accepted: int
    hit: bool
    omega: tuple[float, ...]


def outcomes(trace: Trace) -> Iterator[Met]:
    """Every outcome that its row went on from, prefill's left out."""
    by_row: dict[int, list[Round]] = defaultdict(list)
    for entry in trace.rounds:
        by_row[entry.row].append(entry)
    for row, entries in by_row.items():
        for index, (entry, handover) in enumerate(zip(entries[:-1], trace.handovers, strict=False)):
            if index:
                omega = handover.omega[row] if handover.omega else ()
                yield Met(index, entry.accepted, handover.hit[row], omega)


def pooled(several: Iterable[Mapping[int, C]]) -> dict[int, C]:
    """Counts by accepted length or position, of several outcomes or generations together."""
    sums: dict[int, C] = {}
    for counts in several:
        for place, one in counts.items():
            sums[place] = sums[place] + one if place in sums else one
    return dict(sorted(sums.items()))


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
    """Where intervals of both lists overlap; each list is in order and without overlaps."""
    found, i, j = [], 0, 0
    while i < len(some) and j < len(others):
        start, end = max(some[i][0], others[j][0]), min(some[i][1], others[j][1])
        if end > start:
            found.append((start, end))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return found


def total(intervals: Sequence[Interval]) -> float:
    """Their length together."""
    return sum(end - start for start, end in intervals)
