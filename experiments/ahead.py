"""What drafting ahead came to, over all replies of an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.journal import Entry
from specdec.overlap import Hits, Overlap

DEFINITIONS = {
    "hit_rate": "share of outcomes for which a draft was ready; prefill's and those that end a reply are none",
    "hits": "the same as counts, by accepted length: outcomes, and those for which a draft was ready",
    "omega": "mass of the law that is decoded on the tokens that the target's early exit had named, by position "
    "of the window; none without an exit, and where rounds are replayed",
    "hidden": "share of the drafter's work that was done while the target worked",
    "exposed_ms": "per decoding round: the drafter at work while the target was not",
    "target_idle_ms": "per decoding round: the target waiting, for whatever reason",
    "drafter_idle_ms": "per decoding round: the drafter waiting",
    "rendezvous_ms": "per decoding round: neither at work, which is target_idle_ms without exposed_ms",
    "branches": "outcomes that were prepared, per round with an outcome",
    "wasted": "those of them that did not come true",
    "fallback": "share of rounds with an outcome in which a row had no draft ready",
}


@dataclass(frozen=True)
class Ahead:
    """Figures of a drafter that works while the target does, see ``DEFINITIONS``.

    Sums over all replies before any ratio is taken; None where there is nothing to divide by.
    """

    hit_rate: float | None
    hits: dict[int, Hits]
    omega: dict[int, float]
    hidden: float | None
    exposed_ms: float | None
    target_idle_ms: float | None
    drafter_idle_ms: float | None
    rendezvous_ms: float | None
    branches: float | None
    wasted: float | None
    fallback: float | None

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Ahead | None:
        """The figures of an arm's answers, None for one that drafts in turns."""
        told = [Overlap.read(e.metrics["overlap"]) for e in entries if e.metrics["overlap"] is not None]
        return cls.measured(Overlap.pooled(told)) if told else None

    @classmethod
    def measured(cls, overlap: Overlap) -> Ahead:
        """The figures of sums."""

        def ms(seconds: float) -> float | None:
            return 1e3 * seconds / overlap.rounds if overlap.rounds else None

        def each(count: int) -> float | None:
            return count / overlap.handovers if overlap.handovers else None

        return cls(
            hit_rate=overlap.hit_rate,
            hits=overlap.hits,
            omega={place: named.mean for place, named in overlap.omega.items()},
            hidden=overlap.hidden,
            exposed_ms=ms(overlap.exposed),
            target_idle_ms=ms(overlap.target_idle),
            drafter_idle_ms=ms(overlap.drafter_idle),
            rendezvous_ms=ms(overlap.rendezvous),
            branches=each(overlap.branches),
            wasted=each(overlap.wasted),
            fallback=overlap.fallback,
        )

    def rates(self) -> list[float | None]:
        """Hit rate at accepted length 0, 1, and so on; None for a length that did not occur."""
        none = Hits(0, 0)
        return [self.hits.get(length, none).rate for length in range(max(self.hits, default=-1) + 1)]
