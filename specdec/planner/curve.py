"""A cost measured at a few widths."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from specdec.planner.checks import check_cost, check_count


@dataclass(frozen=True)
class Curve:
    """Milliseconds by width, piecewise linear between the measured points and unknown outside them.

    Args:
        name: what was measured, for messages.
        points: (width, milliseconds) pairs, widths increasing.

    Raises:
        ValueError: no points, widths that do not increase, a cost that is negative or not finite.
    """

    name: str
    points: Sequence[tuple[int, float]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple((width, ms) for width, ms in self.points))
        if not self.points:
            raise ValueError(f"{self.name} has no measured points: measure it at one width or more")
        for width, ms in self.points:
            check_count(f"a width of {self.name}", width, least=1)
            check_cost(f"{self.name} at width {width}", ms)
        if any(after[0] <= before[0] for before, after in pairwise(self.points)):
            raise ValueError(f"widths of {self.name} must increase: sort the points and merge repeated widths")

    @classmethod
    def flat(cls, name: str, ms: float, last: int) -> Curve:
        """The assumption, to be checked by measurement, that widths 1 to ``last`` all cost ``ms``."""
        return cls(name, ((1, ms), (last, ms)) if last > 1 else ((1, ms),))

    def __call__(self, width: int) -> float:
        """Milliseconds at a width.

        Raises:
            ValueError: the width lies outside the measured ones.
        """
        first, last = self.points[0][0], self.points[-1][0]
        if not first <= width <= last:
            raise ValueError(
                f"{self.name} was measured at widths {first} to {last} and is needed at {width}: "
                f"measure it at {width}, or plan within what was measured"
            )
        place = bisect_left(self.points, width, key=lambda point: point[0])
        right, slow = self.points[place]
        if right == width:
            return slow
        left, fast = self.points[place - 1]
        return fast + (slow - fast) * (width - left) / (right - left)

    def plus(self, extra: Callable[[int], float]) -> Curve:
        """The same curve with ``extra(width)`` milliseconds added at every measured width.

        Exact between the points too where ``extra`` is linear in the width, as the time of collectives is.
        """
        return Curve(self.name, [(width, ms + extra(width)) for width, ms in self.points])
