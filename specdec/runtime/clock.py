"""Time on a device: marks in its queue, read when all is done."""

from __future__ import annotations

import torch


class DeviceClock:
    """Marks when the device gets to them, so that launching ahead of it does not look like speed."""

    def __init__(self) -> None:
        self._first: torch.cuda.Event | None = None

    def __call__(self) -> torch.cuda.Event:
        """A mark behind all that has been launched so far."""
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._first = self._first or mark
        return mark

    def seconds(self, mark: torch.cuda.Event) -> float:
        """When a mark was reached, since the first one; waits for it."""
        while not mark.query():
            pass
        return float(self._first.elapsed_time(mark)) / 1e3 if self._first is not None else 0.0
