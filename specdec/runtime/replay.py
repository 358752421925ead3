"""Parts of a round recorded as CUDA graphs and replayed: one launch for hundreds of kernels.

What is recorded is the very code that runs without it. A part of a new shape is played directly once, so that
kernels are compiled and libraries set up, and after that from its recording.
"""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.noise import Noise
from specdec.runtime.filling import Filling
from specdec.runtime.held import flatten, rebuild, released, themselves
from specdec.runtime.place import Place

log = logging.getLogger(__name__)

# Recordings that are kept; the one that was not played for longest is dropped first.
MOST = 256
# How many times a part is played without a recording when memory ran out; each further time twice as many.
PAUSE = 32

Key = tuple[Callable[..., Any], Any, tuple[Place, ...]]


class Replay:
    """Plays parts of a round: functions of values that hold tensors, whose shapes do not depend on the rows.

    It keeps nothing alive that its caller lets go, but the tensors that a recording was last filled with. What was
    recorded with a drafter that is gone, or on a cache that has moved, goes with it: nobody can ask for it again.

    Args:
        record: makes a recording; CUDA graphs, unless a test stands in for them.

    Attributes:
        sides: queues of drafters that work beside this target, by device; see ``specdec.runtime.streams``.
    """

    def __init__(self, record: Callable[..., Recording] | None = None) -> None:
        self._recorder = Recorder(record or Recording)
        self._known: OrderedDict[Key, Known] = OrderedDict()
        self._gone: list[Key] = []
        self._said: set[str] = set()
        self.sides: dict[torch.device, Any] = {}
        self._noise: dict[Hashable, Noise] = {}

    def beside(self) -> Replay:
        """Another one that records as this one does, never at the same time."""
        other = Replay()
        other._recorder = self._recorder
        return other

    @property
    def recording(self) -> bool:
        """Whether a part is being recorded right now, here or beside."""
        return self._recorder.busy

    def noise(self, seed: int, rows: int, positions: int, coupled: bool, device: torch.device) -> Noise:
        """The noise of a seed, in the place from which recordings draw."""
        key = (rows, positions, coupled)
        if key not in self._noise:
            self._noise[key] = Noise(seed, torch.arange(rows, device=device), positions, coupled)
        self._noise[key].reseed(seed)
        return self._noise[key]

    def __call__(self, part: Callable[..., Any], places: tuple[Place, ...], *arguments: Any) -> Any:
        """Play a part. Recordings are good as long as the caches that they read and write stay in their places."""
        known, leaves = self.find(part, places, arguments)
        if known is None or known.recording is None:
            return part(*arguments)
        return known.recording(leaves)

    def find(
        self, part: Callable[..., Any], places: tuple[Place, ...], arguments: tuple[Any, ...]
    ) -> tuple[Known | None, list[Tensor]]:
        """What is known of a part with such arguments, recorded if that can be, and the tensors in the arguments.

        None if it was not played like this before: whoever asks plays it directly then.
        """
        leaves: list[Tensor] = []
        shape = flatten(arguments, leaves)
        key = (part, shape, places)
        self._bury()
        known = self._known.get(key)
        if known is None:
            self._meet((part, released(shape), places))
            return None, leaves
        if known.recording is None:
            self._try(known, part, shape, leaves)
        if known.recording is not None:
            self._known.move_to_end(key)  # the last to be dropped
        return known, leaves

    def _meet(self, key: Key) -> None:
        # Copies are gone through here and below: what goes may take others along at any time.
        for other in list(self._known):
            if not all(place.stands for place in other[2]):
                self._known.pop(other, None)
        me = weakref.ref(self)

        def heard(_: Any) -> None:
            replay = me()
            if replay is not None:
                replay._lose(key)

        caches = [thing for place in key[2] for thing in (place.memory, place.cache)]
        self._known[key] = Known([thing.watch(heard) for thing in (*caches, *themselves(key[1]))])

    def _lose(self, key: Key) -> None:
        self._gone.append(key)
        if not self.recording:  # else a graph would be destroyed while another is made
            self._bury()

    def _bury(self) -> None:
        while self._gone:
            self._known.pop(self._gone.pop(), None)

    def _try(self, known: Known, part: Callable[..., Any], shape: Any, leaves: list[Tensor]) -> None:
        if known.rest:
            known.rest -= 1
            return
        made = [other for other in list(self._known.values()) if other.recording is not None]
        for other in made[: max(0, len(made) + 1 - MOST)]:
            other.recording = None
        try:
            known.recording = self._recorder(part, shape, leaves)
        except Exception as error:  # whoever fails here is heard again when the part is played directly
            self._refuse(known, part.__name__, error)

    def _refuse(self, known: Known, name: str, error: Exception) -> None:
        if ran_out(error):  # which may pass, and less is held from now on
            known.rest, known.pause = known.pause, 2 * known.pause
            for other in list(self._known.values()):
                other.recording = None
            torch.cuda.empty_cache()
        else:
            known.rest = math.inf
        log.debug("", exc_info=error)
        if name not in self._said:
            self._said.add(name)
            log.warning("%s cannot be recorded and is launched kernel by kernel: %s", name, error)


@dataclass(eq=False)
class Known:
    """A part that has been played with values of one shape.

    Attributes:
        ends: what hears of the end of a thing that it was played with.
        recording: None where there is none.
        rest: how many times it is played without one until one is tried; infinite where it cannot be recorded.
        pause: its next rest, if memory runs out.
    """

    ends: list[Any]
    recording: Recording | None = None
    rest: float = 0
    pause: int = PAUSE


@dataclass(eq=False)
class Recorder:
    """Makes recordings, one at a time.

    Attributes:
        make: how.
        busy: whether it is at it.
    """

    make: Callable[..., Recording]
    busy: bool = False

    def __call__(self, part: Callable[..., Any], shape: Any, leaves: Sequence[Tensor]) -> Recording:
        """A recording of a part."""
        self.busy = True
        try:
            return self.make(part, shape, leaves)
        finally:
            self.busy = False


def ran_out(error: BaseException | None) -> bool:
    """Whether memory ran out; where a recording is given up after that, another error may come of it."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        if "out of memory" in str(error):  # CUDA's own word, where PyTorch did not ask for the memory
            return True
        error = error.__cause__ or error.__context__
    return error is not None


class Recording:
    """One part with its inputs in fixed places.

    Its result lies in fixed places too, and is good until it is played again.
    """

    def __init__(self, part: Callable[..., Any], shape: Any, leaves: Sequence[Tensor]) -> None:
        self._inputs = [leaf.clone() for leaf in leaves]
        self._fill = Filling(self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(self._graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local")
        with warnings.catch_warnings(), capture:
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # as an empty draft is
            self._result = part(*rebuild(shape, iter(self._inputs)))

    def __call__(self, leaves: Sequence[Tensor]) -> Any:
        self._fill(leaves)
        self._graph.replay()
        return self._result


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one on which kernels are launched and streams and events are made."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
