"""What a pair of models costs on its machine, as measured. k is the window, in tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf

from specdec.planner.checks import check_cost, check_count
from specdec.planner.curve import Curve

_ROUNDING = 1e-9  # 21 tokens at 1.4 a step are 15 steps; their floating-point ratio is above 15


@dataclass(frozen=True)
class Costs:
    """Measured costs of one sequence, all in milliseconds.

    Args:
        target: one forward of the target, by tokens in it. Width 1 is plain decoding.
        drafter: one step of the drafter, by branches that it advances side by side. Width 1 is a chain.
        tokens_per_step: η, mean tokens of a branch that one step of the drafter yields; above 1 for a streaming
            drafter (arXiv 2402.11131).
        look: the drafter reading the window again before it rolls out branches; 0 where its laws are at hand.
        exit_head: final norm, LM head and top-κ on the state behind layer E, for the rows of a window.
        host: what the loop adds to a round that drafts, in any schedule.
        early: rendezvous after layer E, sampling and transfer.
        final: rendezvous after the last layer, sampling and transfer.

    Raises:
        ValueError: a curve lacks width 1, a target step that costs nothing, η below 1, a negative cost.
    """

    target: Curve
    drafter: Curve
    tokens_per_step: float = 1.0
    look: float = 0.0
    exit_head: float = 0.0
    host: float = 0.0
    early: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        for name in ("look", "exit_head", "host", "early", "final"):
            check_cost(name, getattr(self, name))
        if not 1 <= self.tokens_per_step < inf:
            raise ValueError(
                f"tokens_per_step must be at least 1, not {self.tokens_per_step!r}: 1 is no streaming"
            )
        if self.plain <= 0:
            raise ValueError("a target step of width 1 must take time: measure it")
        self.drafter(1)

    @property
    def plain(self) -> float:
        """Milliseconds per token of plain decoding."""
        return self.target(1)

    @property
    def ratio(self) -> float:
        """c = D / T, a step of a chain of the drafter over a plain step of the target."""
        return self.drafter(1) / self.plain

    def verify(self, window: int) -> float:
        """Milliseconds of a forward over the last committed token and a window."""
        check_count("window", window)
        return self.target(window + 1)

    def prefix(self, window: int, exit: float) -> float:
        """Milliseconds of layers 1..E in that forward, taken as the share ``exit`` = E/N of it.

        Raises:
            ValueError: ``exit`` is not between 0 and 1.
        """
        if not 0 < exit < 1:
            raise ValueError(
                f"exit must lie between 0 and 1, not {exit!r}: pass E/N, the share of layers before it"
            )
        return exit * self.verify(window)

    def suffix(self, window: int, exit: float) -> float:
        """Milliseconds of layers E+1..N, the rest of that forward."""
        return self.verify(window) - self.prefix(window, exit)

    def draft(self, tokens: int, branches: int = 1) -> float:
        """Milliseconds of ceil(tokens / η) steps of the drafter, on ``branches`` branches side by side."""
        check_count("tokens", tokens)
        return ceil(tokens / self.tokens_per_step - _ROUNDING) * self.drafter(branches)
