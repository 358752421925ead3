"""How far a window gets: the law of the accepted length, and what it makes of hit rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from operator import mul
from typing import TYPE_CHECKING

from specdec.planner.checks import check_count, check_rate

if TYPE_CHECKING:
    from specdec.metrics import Position


@dataclass(frozen=True)
class Acceptance:
    """Probability that a drafted token is accepted given that all before it were; depth 1 is the first token.

    Args:
        by_depth: the probability at depths 1, 2, ….
        beyond: the probability at every later depth; None where none was measured.

    Raises:
        ValueError: not probabilities, or nothing given.
    """

    by_depth: Sequence[float] = ()
    beyond: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_depth", tuple(self.by_depth))
        if not self.by_depth and self.beyond is None:
            raise ValueError("acceptance is empty: give α, or measure one depth or more")
        for depth, rate in enumerate(self.by_depth, 1):
            check_rate(f"acceptance at depth {depth}", rate)
        if self.beyond is not None:
            check_rate("acceptance", self.beyond)

    @classmethod
    def iid(cls, alpha: float) -> Acceptance:
        """Every token is accepted with probability α on its own (Leviathan et al., arXiv 2211.17192)."""
        return cls(beyond=alpha)

    @classmethod
    def of(cls, positions: Iterable[Position]) -> Acceptance:
        """As a generation measured it, up to the first depth that no round tested (``Metrics.positions``)."""
        rates = []
        for position in positions:
            if not position.tested:
                break
            rates.append(position.accepted / position.tested)
        return cls(rates)

    def at(self, depth: int) -> float:
        """The probability at one depth, from 1.

        Raises:
            ValueError: the depth was not measured.
        """
        check_count("depth", depth, least=1)
        if depth <= len(self.by_depth):
            return self.by_depth[depth - 1]
        if self.beyond is None:
            raise ValueError(
                f"acceptance was measured to depth {len(self.by_depth)} and is needed at {depth}: "
                f"measure with a window of {depth} or more, or plan shorter windows"
            )
        return self.beyond

    def reach(self, window: int) -> tuple[float, ...]:
        """P(A >= j) for j = 0..k, A the accepted length of a window of k."""
        check_count("window", window)
        return tuple(accumulate((self.at(depth) for depth in range(1, window + 1)), mul, initial=1.0))

    def committed(self, window: int) -> float:
        """τ(k), expected tokens per round, the correction or bonus token included.

        With i.i.d. acceptance (1 − α^(k+1)) / (1 − α), equation 1 of arXiv 2211.17192.
        """
        return sum(self.reach(window))

    def outcomes(self, window: int) -> tuple[float, ...]:
        """P(A = j) for j = 0..k."""
        reach = (*self.reach(window), 0.0)
        return tuple(reach[length] - reach[length + 1] for length in range(window + 1))

    def hit_rate(self, window: int, hits: float | Sequence[float]) -> float:
        """h, how often a prepared draft is adopted.

        Args:
            window: k.
            hits: h at any accepted length, or h_j given that the accepted length is j, for j = 0..k.

        Raises:
            ValueError: not probabilities, or not k + 1 of them.
        """
        rates = (hits,) * (window + 1) if isinstance(hits, int | float) else tuple(hits)
        for rate in rates:
            check_rate("a hit rate", rate)
        if len(rates) != window + 1:
            raise ValueError(
                f"{len(rates)} hit rates for a window of {window}: give {window + 1}, "
                f"one for each accepted length 0..{window}, or a single number"
            )
        return sum(rate * share for rate, share in zip(rates, self.outcomes(window), strict=True))

    @property
    def limit(self) -> float:
        """Tokens per round that no window exceeds, 1 / (1 − α); τ of the deepest window if measured by depth."""
        reach = self.reach(len(self.by_depth))
        if self.beyond is None or reach[-1] == 0:
            return sum(reach)
        tail = reach[-1] * self.beyond / (1 - self.beyond) if self.beyond < 1 else inf
        return sum(reach) + tail
