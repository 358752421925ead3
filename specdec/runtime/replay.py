"""Parts of a round recorded as CUDA graphs and replayed: one launch for hundreds of kernels.

What is recorded is the very code that runs without it. A part of a new shape is played directly once, so that
kernels are compiled and libraries set up, and after that from its recording.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from specdec.noise import Noise
from specdec.runtime.model import Place

log = logging.getLogger(__name__)

# Recordings that are kept; the one that was not played for longest is dropped first.
MOST = 256

Key = tuple[Callable[..., Any], Any, tuple[Place, ...]]


class Replay:
    """Plays parts of a round: functions of values that hold tensors, whose shapes do not depend on the rows.

    Args:
        record: makes a recording; CUDA graphs, unless a test stands in for them.

    Attributes:
        recording: whether a part is being recorded right now.
        sides: queues of drafters that work beside this target, by device; see ``specdec.runtime.streams``.
    """

    def __init__(self, record: Callable[..., Recording] | None = None) -> None:
        self._record = record or Recording
        self._recordings: dict[Key, Recording] = {}
        self._warm: set[Key] = set()
        self._refused: set[Key] = set()
        self._said: set[str] = set()
        self.recording = False
        self.sides: dict[torch.device, Any] = {}
        self._noise: dict[Hashable, Noise] = {}
        self._places: set[tuple[Place, ...]] = set()

    def beside(self) -> Replay:
        """Another one that records as this one does."""
        return Replay(self._record)

    def noise(self, seed: int, rows: int, positions: int, coupled: bool, device: torch.device) -> Noise:
        """The noise of a seed, in the place from which recordings draw."""
        key = (rows, positions, coupled)
        if key not in self._noise:
            self._noise[key] = Noise(seed, torch.arange(rows, device=device), positions, coupled)
        self._noise[key].reseed(seed)
        return self._noise[key]

    def __call__(self, part: Callable[..., Any], places: tuple[Place, ...], *arguments: Any) -> Any:
        """Play a part. Recordings are good as long as the caches that they read and write stay in their places."""
        leaves: list[Tensor] = []
        shape = flatten(arguments, leaves)
        key = (part, shape, places)
        self._tidy(places)
        if key in self._refused:
            return part(*arguments)
        if key not in self._warm:
            self._warm.add(key)
            return part(*arguments)
        if key not in self._recordings and not self._try(key, part, shape, leaves):
            return part(*arguments)
        self._recordings[key] = self._recordings.pop(key)  # the last to be dropped
        return self._recordings[key](leaves)

    def _try(self, key: Key, part: Callable[..., Any], shape: Any, leaves: list[Tensor]) -> bool:
        self.recording = True
        while len(self._recordings) >= MOST:
            del self._recordings[next(iter(self._recordings))]
        try:
            self._recordings[key] = self._record(part, shape, leaves)
        except Exception as error:  # whoever fails here is heard again when the part is played directly
            self._refuse(key, part.__name__, error)
            return False
        finally:
            self.recording = False
        return True

    def _refuse(self, key: Key, name: str, error: Exception) -> None:
        self._refused.add(key)
        if isinstance(error, torch.OutOfMemoryError):
            self._recordings.clear()
            torch.cuda.empty_cache()
        log.debug("", exc_info=error)
        if name not in self._said:
            self._said.add(name)
            log.warning("%s cannot be recorded and is launched kernel by kernel: %s", name, error)

    def _tidy(self, places: tuple[Place, ...]) -> None:
        if places in self._places:
            return
        self._places = {known for known in self._places if all(place.stands for place in known)} | {places}
        self._warm = {key for key in self._warm if key[2] in self._places}
        self._refused = {key for key in self._refused if key[2] in self._places}
        self._recordings = {key: made for key, made in self._recordings.items() if key[2] in self._places}


class Recording:
    """One part with its inputs in fixed places.

    Its result lies in fixed places too, and is good until it is played again.
    """

    def __init__(self, part: Callable[..., Any], shape: Any, leaves: Sequence[Tensor]) -> None:
        self._inputs = [leaf.clone() for leaf in leaves]
        self._graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(self._graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local")
        with warnings.catch_warnings(), capture:
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # as an empty draft is
            self._result = part(*rebuild(shape, iter(self._inputs)))

    def __call__(self, leaves: Sequence[Tensor]) -> Any:
        fill(self._inputs, leaves)
        self._graph.replay()
        return self._result


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the one on which kernels are launched and streams and events are made."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def fill(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values to where they are read from, one launch per type; those that are there already stay."""
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(places, values, strict=True):
        if place is not value and place.numel():
            sources = by_type.setdefault(place.dtype, ([], []))
            sources[0].append(place)
            sources[1].append(value)
    for targets, sources_of_type in by_type.values():
        torch._foreach_copy_(targets, sources_of_type)


def flatten(value: Any, leaves: list[Tensor]) -> Any:
    """Collect the tensors in a value; what is left says how to put it together, and can be compared."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return (Tensor, tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list):
        return (tuple, tuple(flatten(part, leaves) for part in value))
    if isinstance(value, Mapping):
        return (dict, tuple((key, flatten(part, leaves)) for key, part in value.items()))
    if is_dataclass(value) and not isinstance(value, type):
        parts = tuple(
            (part.name, flatten(getattr(value, part.name), leaves)) for part in fields(value) if part.init
        )
        return (type(value), parts)
    return (None, Held(value))


def rebuild(shape: Any, leaves: Iterator[Tensor]) -> Any:
    """The value that ``flatten`` took apart, with other tensors."""
    kind, content = shape[0], shape[1]
    if kind is Tensor:
        return next(leaves)
    if kind is tuple:
        return tuple(rebuild(part, leaves) for part in content)
    if kind is dict:
        return {key: rebuild(part, leaves) for key, part in content}
    if kind is None:
        return content.value
    return kind(**{name: rebuild(part, leaves) for name, part in content})


class Held:
    """Something that is no tensor: equal if it is equal, or stands for the same (its ``identity``)."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._identity = getattr(value, "identity", value)
        try:
            hash(self._identity)
        except TypeError:  # it may change: nothing but itself is the same, as long as it is held here
            self._identity = (type(value), id(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)
