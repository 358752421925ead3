"""The parts of a round at the target's side, and their times: called by the host, or replayed on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any

from torch import Tensor

from specdec.loop import propose, verify
from specdec.runtime.model import CachedModel
from specdec.runtime.place import Place
from specdec.runtime.replay import Known, Replay
from specdec.trace import Networks, Trace
from specdec.types import Draft

# Widths of recorded forwards that read prompts: few, so that few recordings are made. Longer prompts are read by
# the libraries that are best at it.
WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
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
class Again:
    """A part as it was played last. Round after round it gets the same objects, the results of recordings: to take
    them apart anew would take the host longer than a small target takes for a token.

    Attributes:
        arguments: what it was played with.
        places: where the caches lay.
        known: what was known of it.
        leaves: the tensors in the arguments.
    """

    arguments: tuple[Any, ...]
    places: tuple[Place, ...]
    known: Known | None
    leaves: list[Tensor]

    def fits(self, arguments: tuple[Any, ...]) -> bool:
        """Whether it can be played from the same recording again."""
        if not self.recorded or len(arguments) != len(self.arguments):
            return False
        return all(map(is_, arguments, self.arguments)) and all(place.stands for place in self.places)

    @property
    def recorded(self) -> bool:
        """Whether it is played from a recording."""
        return self.known is not None and self.known.recording is not None

    def __call__(self, part: Callable[..., Any]) -> Any:
        """Play it, from its recording if there is one."""
        recording = None if self.known is None else self.known.recording
        return part(*self.arguments) if recording is None else recording(self.leaves)


@dataclass(frozen=True)
class Stage:
    """Plays the parts of one generation.

    Attributes:
        replay: what has been recorded, in this generation or an earlier one.
        trace: takes the times.
        models: those whose caches the recordings read and write, the target's first.
        drafts: whether the drafter's part can be recorded too; drafters that work on the host cannot.
        width: tokens of every verification after prefill; None takes the draft's own.
        reads: tokens of the forward that reads the rows, 0 where it is not to be recorded; see ``reading_width``.
    """

    replay: Replay
    trace: Trace
    models: tuple[CachedModel, ...]
    drafts: bool
    width: int | None = None
    reads: int = 0
    _last: dict[Callable[..., Any], Again] = field(default_factory=dict)
    _begun: set[Callable[..., Any]] = field(default_factory=set)

    def __call__(self, part: Callable[..., Any], *arguments: Any) -> Any:
        """Play one part."""
        if part is verify:
            seq, draft, *others = arguments
            arguments = (seq, self._sized(draft), *others)
        with self.trace.span(LANES[part]):
            reads = self._reads(part)
            concerned = self.models[:1] if part is verify else self.models[1:]
            reading = [model for model in concerned if not model.follows]
            if part is propose and not self.drafts:
                return part(*arguments)
            if not reading:
                return self._again(part, arguments)(part)
            if not reads or not all(model.steady for model in reading):
                return part(*arguments)  # its shapes depend on the rows
            again = self._again(part, (replace(arguments[0], reads=reads), *arguments[1:]))
            result = again(part)
            for model in reading if again.recorded else ():
                model.caught_up()
            return result

    def _again(self, part: Callable[..., Any], arguments: tuple[Any, ...]) -> Again:
        last = self._last.get(part)
        if last is None or not last.fits(arguments):
            places = self.places
            last = self._last[part] = Again(arguments, places, *self.replay.find(part, places, arguments))
        return last

    def _reads(self, part: Callable[..., Any]) -> int:
        """The width at which a part reads rows, the first time it is played; after a fault they are longer."""
        first = part not in self._begun
        self._begun.add(part)
        return self.reads if first else 0

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


def reading_width(longest: int, rows: int = 1) -> int:
    """Tokens of each row in the recorded forward that reads rows of up to so many; 0 where they are too many.

    A drafter reads the first committed token with them. All rows together are no more than one of the widest:
    attention keeps partial sums of every token, and a recording keeps the room for them.
    """
    return next((width for width in WIDTHS if width > longest and rows * width <= WIDTHS[-1]), 0)
