"""The parts of a round at the target's side, and their times: called by the host, or replayed on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specdec.loop import propose, verify
from specdec.runtime.model import CachedModel, Place
from specdec.runtime.replay import Replay
from specdec.trace import Networks, Trace
from specdec.types import Draft

LANES = {verify: "target", propose: "drafter"}


@dataclass(frozen=True)
class Live:
    """Plays the parts of one generation by calling them. The host is timed, of a verification the forward too.

    Attributes:
        trace: takes the times.
        networks: whose forwards it is to time, by lane.
    """

    trace: Trace
    networks: Networks

    def __call__(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """Play one part."""
        with self.trace.span(f"host.{part.__name__}"):
            if part is not propose:
                return part(*arguments)
            with self.trace.span(LANES[part]):
                return part(*arguments)


@dataclass(frozen=True)
class Stage:
    """Plays the parts of one generation.

    Attributes:
        replay: what has been recorded, in this generation or an earlier one.
        trace: takes the times.
        models: those whose caches the recordings read and write, the target's first.
        drafts: whether the drafter's part can be recorded too; drafters that work on the host cannot.
        width: tokens of every verification after prefill; None takes the draft's own.
    """

    replay: Replay
    trace: Trace
    models: tuple[CachedModel, ...]
    drafts: bool
    width: int | None = None

    def __call__(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """Play one part."""
        if part is verify:
            seq, draft, *others = arguments
            arguments = (seq, self._sized(draft), *others)
        with self.trace.span(LANES[part]):
            reads = not all(model.follows for model in self.models)  # its shapes depend on the prompt
            if reads or (part is propose and not self.drafts):
                return part(*arguments)
            return self.replay(part, self.places, *arguments)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the caches lie."""
        return tuple(model.place for model in self.models)

    def _sized(self, draft: Draft) -> Draft:
        """Few sizes, so that few recordings are made: those of device drafters never change."""
        if self.width is not None:
            # Prefill is the same for all drafters anyway, and padding would cost a mask of its length squared.
            return draft.padded(self.width - 1) if self.models[0].follows else draft
        return draft if self.drafts else draft.padded((1 << draft.size.bit_length()) - 1)
