"""Two queues of work that wait for each other: of one device, or of two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from specdec.runtime.held import flatten, rebuild
from specdec.runtime.replay import Replay, current

T = TypeVar("T")


class Signal:
    """A mark that a GPU passes in the middle of a recording, every time it is played."""

    def __init__(self, device: torch.device) -> None:
        self.event = None
        if device.type == "cuda":
            with current(device):
                self.event = torch.cuda.Event(enable_timing=True, external=True)

    @property
    def identity(self) -> object:
        """What a recording may take it for."""
        return self

    def __call__(self, _: object) -> None:
        """What it marks is there."""
        if self.event is not None:
            self.event.record()


class Side:
    """The queue of a drafter's device beside that of the target's, and what was recorded for it.

    What crosses over between devices is copied by a third queue, on the target's device: else the copy would stand
    behind all that the target has to do. A fourth, on the drafter's, takes what the drafter need not wait for. A
    CPU has no queues: there all is done when it is told.

    Args:
        target: device of the target.
        drafter: device of the drafter; it may be the same.
        replay: plays the drafter's parts.
    """

    def __init__(self, target: torch.device, drafter: torch.device, replay: Replay) -> None:
        self.target, self.drafter, self.replay = target, drafter, replay
        self.signal = Signal(target)
        self._main: Any = None
        self._queue = queue(drafter)
        self._courier = self._queue if target == drafter else queue(target)
        self._beside = queue(drafter)

    @property
    def alike(self) -> bool:
        """Whether both devices are of one kind, so that what is recorded for the one can be for the other."""
        return self.target.type == self.drafter.type

    def begin(self) -> None:
        """What the target is told from here on goes to the queue that is its current one now.

        The drafter's queues come after all that both devices' current queues have been told.
        """
        for device in {self.target, self.drafter}:
            if device.type == "cuda":
                with current(device):
                    mark = marked(device, torch.cuda.current_stream(device))
                self.follow(mark)
                if self._beside is not None and mark is not None:
                    self._beside.wait_event(mark)
        if self.target.type == "cuda":
            self._main = torch.cuda.current_stream(self.target)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """What is launched inside goes to the drafter's queue."""
        with ExitStack() as stack:
            for one in (self._courier, self._queue):
                if one is not None:
                    stack.enter_context(torch.cuda.stream(one))
            yield

    @contextmanager
    def reading(self, mine: torch.cuda.Event | None, mark: torch.cuda.Event | None) -> Iterator[None]:
        """What is launched inside comes after a mark of the drafter's queue and one of the target's.

        It runs beside what the drafter's queue was told since; what that is told from then on comes after it.
        """
        with self._aside(mine, mark):
            yield
        if self._beside is not None:
            self._queue.wait_event(marked(self.drafter, self._beside))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """What is launched inside comes after all that the drafter's queue was told, which goes on beside it."""
        with self._aside(self.standing()):
            yield

    @contextmanager
    def _aside(self, *marks: torch.cuda.Event | None) -> Iterator[None]:
        for one, mark in product((self._courier, self._beside), marks):
            if one is not None and mark is not None:
                one.wait_event(mark)
        with nullcontext() if self._beside is None else torch.cuda.stream(self._beside):
            yield

    def follow(self, mark: torch.cuda.Event | None) -> None:
        """What is launched from here on comes after a mark of the target's queue."""
        for one in (self._courier, self._queue):
            if one is not None and mark is not None:
                one.wait_event(mark)

    def bring(self, tensor: Tensor) -> Tensor:
        """A tensor of the target's on the drafter's device."""
        return tensor.to(self.drafter, non_blocking=self.drafter.type == "cuda")

    def keep(self, value: T) -> T:
        """A value of the target's that holds tensors, on the drafter's device, for as long as it is wanted.

        The target goes on when it has the next window: its own recording then overwrites what is not copied.
        """
        leaves: list[Tensor] = []
        shape, moves = flatten(value, leaves), self.target != self.drafter
        kept: T = rebuild(shape, iter([self.bring(leaf) if moves else leaf.clone() for leaf in leaves]))
        return kept

    def mark(self) -> torch.cuda.Event | None:
        """A mark in the target's own queue, behind all that it has been told."""
        return marked(self.target, self._main)

    def standing(self) -> torch.cuda.Event | None:
        """A mark in the drafter's queue, behind all that it has been told."""
        return marked(self.drafter, self._queue)

    def lead(self) -> None:
        """The target's own queue goes on when what was sent is there."""
        mark = marked(self.drafter, self._beside) or marked(self.target, self._courier)
        if mark is not None and self._main is not None:
            self._main.wait_event(mark)


def queue(device: torch.device) -> Any:
    """Another queue of a GPU, None for a CPU."""
    with current(device):
        return torch.cuda.Stream(device) if device.type == "cuda" else None


def marked(device: torch.device, queue: Any) -> torch.cuda.Event | None:
    """A mark behind all that a GPU's queue has been told."""
    if queue is None:
        return None
    with current(device):
        event = torch.cuda.Event()
        event.record(queue)
    return event
