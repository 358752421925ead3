"""Which outcomes of a window get a prepared draft, and how often the one that happens is among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdec.planner.checks import check_count, check_rate


@dataclass(frozen=True)
class Branching:
    """One measured way to guess outcomes.

    Args:
        branches: outcomes that the drafter rolls out side by side, over all positions of the window.
        hits: the share of rounds whose outcome was prepared; or that share given an accepted length of 0..k,
            which was measured for that window and is planned for no other.
        exit: E/N, the share of layers behind which the target's own early exit guesses (Mirror-SD); None where
            the drafter guesses by itself (SSD).

    Raises:
        ValueError: no branches, hits that are not probabilities, an exit not between 0 and 1.
    """

    branches: int
    hits: float | Sequence[float]
    exit: float | None = None

    def __post_init__(self) -> None:
        check_count("branches", self.branches, least=1)
        if not isinstance(self.hits, int | float):
            object.__setattr__(self, "hits", tuple(self.hits))
            if not self.hits:
                raise ValueError("hits are empty: give one for each accepted length 0..k, or a single number")
        for rate in self.hits if isinstance(self.hits, tuple) else (self.hits,):
            check_rate("a hit rate", rate)
        if self.exit is not None and not 0 < self.exit < 1:
            raise ValueError(f"exit must lie between 0 and 1, not {self.exit!r}: pass E/N, or None for no exit")

    def fits(self, window: int) -> bool:
        """Whether the hit rates speak of this window."""
        return not isinstance(self.hits, tuple) or len(self.hits) == window + 1
