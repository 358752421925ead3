"""What the tokens of one forward see, in few words. B rows, W tokens, D depth slots of a tree."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Sight:
    """What each token of a forward sees.

    Attributes:
        lengths: int64 [B], committed tokens; the nodes of a tree lie in the slots behind them.
        counts: int64 [B, W], positions below this are seen.
        lows: int64 [B, W], positions below this are not (a sliding window), 0 without one.
        order: int64 [B, W, D], the nodes on the way to each token, in order of depth, any beyond its own; None
            for a chain, whose nodes lie in order already.
    """

    lengths: Tensor
    counts: Tensor
    lows: Tensor
    order: Tensor | None

    def within(self, sliding: int | None) -> Sight:
        """The same through a sliding window of so many positions, None for all."""
        return self if sliding is None else replace(self, lows=(self.counts - sliding).clamp(min=0))
