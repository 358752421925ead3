"""What a device sends to the host, read when it has arrived."""

from __future__ import annotations

import torch
from torch import Tensor


class Mail:
    """A copy of a small tensor on its way to the host; asking for it waits for that copy and nothing behind it."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._copy = tensor.clone()  # what it is a result of may be played again
        else:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def tolist(self) -> list[list[int]]:
        """The tensor's numbers."""
        while self._arrived is not None and not self._arrived.query():
            pass  # a sleeping host wakes up later than a device waits for
        return self._copy.tolist()
