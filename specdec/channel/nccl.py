"""The bytes of messages from GPU to GPU, by NCCL."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

BACKENDS = ("gloo", "nccl")
INSTEAD = "choose backend=gloo"
FOREVER = timedelta(days=30)  # that nothing is said for a while is no fault
LIMIT = 10.0  # seconds from the word that something comes until it is there
GLANCE = 2e-5  # seconds between two looks whether it is


def check_backend(backend: str) -> None:
    """Raises ValueError for a backend that is unknown, or that cannot be had here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "nccl" and not (distributed.is_nccl_available() and torch.cuda.is_available()):
        raise ValueError(f"backend=nccl needs a PyTorch with CUDA and a GPU: {INSTEAD}")


def check_target(device: torch.device, alone: bool) -> None:
    """Raises ValueError for a target that cannot talk by NCCL.

    Args:
        device: the target's.
        alone: whether the drafter is on the same machine, which then must have another GPU.
    """
    if device.type != "cuda":
        raise ValueError(f"backend=nccl needs a GPU on each side, and the target is on {device}: {INSTEAD}")
    if alone and torch.cuda.device_count() < 2:
        raise ValueError(f"backend=nccl needs a GPU for each side, and this machine has one: {INSTEAD}")


def check_places(target: str, drafter: str) -> None:
    """Raises ValueError unless both sides have a GPU of their own; see ``place``."""
    if target == drafter or not (target.startswith("GPU ") and drafter.startswith("GPU ")):
        raise ValueError(
            f"backend=nccl needs a GPU of its own for each side, but the target is on {target} and the drafter "
            f"on {drafter}: {INSTEAD}"
        )


def place(device: torch.device) -> str:
    """What a device is called on any machine: two GPUs never share a name."""
    if device.type != "cuda":
        return str(device)
    return f"GPU {torch.cuda.get_device_properties(device).uuid}"


class Lanes:
    """Two groups of NCCL, one for each direction: in one group, sending would wait for what is being received.

    Both sides call this at one time, and it returns when both directions work. How many bytes come must be told in
    another way first: an operation that waits for its other half occupies the GPU, and whatever waits for the
    whole device would wait for a message.

    Args:
        store: where both sides meet.
        rank: of this side, 0 or 1.
        device: its GPU.
    """

    def __init__(self, store: distributed.Store, rank: int, device: torch.device) -> None:
        self._device, self._other = device, 1 - rank
        # Queues of their own: the networks' work is not waited for.
        self._outgoing, self._incoming = torch.cuda.Stream(device), torch.cuda.Stream(device)
        groups = [group(distributed.PrefixStore(f"lane {sender}", store), rank) for sender in (0, 1)]
        self._out, self._in = groups[rank], groups[1 - rank]
        for sender in (0, 1):  # the first operation of a group connects it
            if sender == rank:
                self.send(torch.zeros(1, dtype=torch.uint8))
            else:
                self.receive(1)

    def send(self, content: Tensor) -> None:
        """Let uint8 [size] go, from the CPU; it is not waited for."""
        with torch.cuda.stream(self._outgoing):
            # What comes next in this queue waits, so the memory is not used again too early.
            self._out.send([content.to(self._device)], self._other, 0).wait()

    def receive(self, size: int) -> Tensor:
        """uint8 [size], on the CPU. Raises ConnectionError where it does not come."""
        with torch.cuda.stream(self._incoming):
            content = torch.empty(size, dtype=torch.uint8, device=self._device)
            work = self._in.recv([content], self._other, 0)
            deadline = time.perf_counter() + LIMIT
            while not work.is_completed():
                if time.perf_counter() > deadline:
                    raise ConnectionError("a message was announced and did not come")
                time.sleep(GLANCE)
            work.wait()
            return content.cpu()

    def abort(self) -> None:
        """Give up what is under way: the other side is gone."""
        for group in (self._out, self._in):
            group.abort()


def group(store: distributed.Store, rank: int) -> Any:
    """A group of two."""
    nccl: Any = getattr(distributed, "ProcessGroupNCCL")  # noqa: B009  absent where PyTorch has no CUDA
    options = nccl.Options()
    options._timeout = FOREVER
    return nccl(store, rank, 2, options)
