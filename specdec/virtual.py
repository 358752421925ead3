"""Time that is computed, not taken: parts of a round pay a clock what they cost. Tokens are real.

Of each side of a pipeline there is one clock; both show seconds since the generation began. B rows, X outcomes per
row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from specdec.exit import Glimpse, Hint
from specdec.loop import propose, verify
from specdec.planner import Costs
from specdec.sequences import Sequences
from specdec.trace import Networks, Trace
from specdec.turn import Turn
from specdec.types import Draft


@dataclass
class VirtualClock:
    """Seconds of one side. They pass when they are spent, or waited for."""

    now: float = 0.0

    def __call__(self) -> float:
        """Seconds since the generation began."""
        return self.now

    def spend(self, ms: float) -> None:
        """Work, or a message on its way."""
        self.now += ms / 1e3

    def wait(self, until: float) -> None:
        """Do nothing before a time; it may have passed."""
        self.now = max(self.now, until)


@dataclass(frozen=True)
class Scene:
    """Plays the parts of a generation at the target's side, on a virtual clock.

    The prompt is read in the time of one token: costs say nothing of prompts.

    Attributes:
        trace: takes the times.
        clock: the target's.
        costs: of the pair.
        share: E/N of the early exit, None without one.
    """

    trace: Trace
    clock: VirtualClock
    costs: Costs
    share: float | None = None

    @property
    def networks(self) -> Networks:
        """None: no time passes in their forwards."""
        return {}

    def __call__(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """Play one part. Raises ValueError for a size that was not measured, and for more than one row."""
        if part is verify:
            return self._verify(*arguments)
        return self._propose(*arguments) if part is propose else part(*arguments)

    def _verify(
        self, seq: Sequences, draft: Draft, verifier: Any, accept: Any, noise: Any, hint: Hint | None = None
    ) -> Turn:
        if len(seq.lengths) != 1:
            raise ValueError(
                f"costs are those of one sequence, not of {len(seq.lengths)}: decode prompt after prompt, "
                "or through a channel without costs"
            )
        before, rest = 0.0, self.costs.verify(draft.size)
        if hint is not None and self.share is not None:
            before, rest = self.costs.prefix(draft.size, self.share), self.costs.suffix(draft.size, self.share)
            hint = partial(self._say, hint, before)
        with self.trace.span("target"):
            turn = verify(seq, draft, verifier, accept, noise, hint)
            self.clock.spend(rest)
        return turn

    def _say(self, hint: Hint, before: float, glimpse: Glimpse) -> None:
        """What the early exit says leaves behind its layers."""
        self.clock.spend(before + self.costs.exit_head)
        hint(glimpse)

    def _propose(self, *arguments: Any) -> Draft:
        with self.trace.span("drafter"):
            draft = propose(*arguments)
            self.clock.spend(drafting(self.costs, draft))
        self.clock.spend(self.costs.host if draft.size else 0.0)
        return draft


class Priced:
    """A drafter whose work takes virtual time, and is otherwise what it was.

    Args:
        drafter: which. Its name stays in what is said of its faults.
        costs: of the pair.
        clock: the drafter's side's.
    """

    def __init__(self, drafter: Any, costs: Costs, clock: VirtualClock) -> None:
        self.__wrapped__ = drafter
        self._prices: dict[str, Callable[..., float]] = {
            "look": lambda _law, *_: costs.look,
            "branch": lambda drafts, context, *_: drafting(
                costs, drafts, len(drafts.base) // len(context.lengths)
            ),
            "draft": lambda draft, *_: drafting(costs, draft),
        }
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__wrapped__, name)
        return partial(self._paid, found, self._prices[name]) if name in self._prices else found

    def _paid(self, call: Callable[..., Any], price: Callable[..., float], *arguments: Any) -> Any:
        result = call(*arguments)
        self._clock.spend(price(result, *arguments))
        return result


def drafting(costs: Costs, draft: Draft, branches: int = 1) -> float:
    """Milliseconds to draft; a step of a tree advances as many nodes of every branch as a node has children."""
    deepest = int(draft.depths.max()) if draft.size else 0
    return costs.draft(deepest, branches * (draft.fanout or 1)) if deepest else 0.0
