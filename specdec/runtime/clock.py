"""Time on devices: marks in their queues, read when all is done."""

from __future__ import annotations

import time

import torch

Mark = tuple[torch.device, torch.cuda.Event]


class DeviceClock:
    """Marks when a device gets to them, so that launching ahead of it does not look like speed.

    Marks of several devices are on one scale: each device has a first mark, whose time the host takes.
    """

    def __init__(self) -> None:
        self._firsts: dict[torch.device, tuple[torch.cuda.Event, float]] = {}

    def __call__(self) -> Mark:
        """A mark behind all that the current queue has been told so far."""
        device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._firsts:
            self._firsts[device] = self._first()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return device, mark

    def device(self, event: torch.cuda.Event) -> torch.device:
        """Where a mark is."""
        return torch.device("cuda", event.device.index)

    def seconds(self, mark: Mark) -> float:
        """When a mark was reached; waits for it."""
        device, event = mark
        wait(event)
        first, at = self._firsts[device]
        return at + float(first.elapsed_time(event)) / 1e3

    def _first(self) -> tuple[torch.cuda.Event, float]:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        wait(event)
        return event, time.perf_counter()


def wait(event: torch.cuda.Event) -> None:
    """Wait for a mark, awake: a sleeping host wakes up later than a device waits for."""
    while not event.query():
        pass
