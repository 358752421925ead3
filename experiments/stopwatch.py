"""Time and memory of a device: by its own clock on a GPU, by the wall elsewhere."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

MIB = 1 << 20
COPY_MIB = {"cuda": 1024, "cpu": 64}  # larger than any cache on a GPU
COPIES = 10


@dataclass(frozen=True)
class Bandwidth:
    """Bytes read and written per second by two simple kernels, the better of which counts.

    Attributes:
        size: bytes of each of the two tensors.
        add: of ``torch.add(x, 1, out=y)``.
        copy: of ``y.copy_(x)``.
    """

    size: int
    add: float
    copy: float

    @property
    def best(self) -> float:
        """The better of the two."""
        return max(self.add, self.copy)


@torch.inference_mode()
def bandwidth(device: torch.device, mib: int | None = None) -> Bandwidth:
    """Measure what a device copies.

    Args:
        device: which.
        mib: size of each of the two tensors in MiB, None for one that suits the device.
    """
    size = (mib or COPY_MIB.get(device.type, COPY_MIB["cpu"])) * MIB
    x = torch.ones(size // 4, dtype=torch.float32, device=device)
    y = torch.empty_like(x)
    add = middle(device, lambda: torch.add(x, 1, out=y), COPIES)
    copy = middle(device, lambda: y.copy_(x), COPIES)
    return Bandwidth(size, 2 * size / add, 2 * size / copy)


def middle(device: torch.device, call: Callable[[], Any], count: int = 20, warm: int = 2) -> float:
    """Median seconds of a call, after some that do not count.

    On a GPU the calls are queued one behind the other, so that launching the next hides behind the last.
    """
    for _ in range(warm):
        call()
    return median(queued(call, count) if device.type == "cuda" else waited(call, count))


def queued(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of many calls, between marks in the device's queue."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    call()  # the device works on this one while the first mark and the next call are launched
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def waited(call: Callable[[], Any], count: int) -> list[float]:
    """Seconds of each of many calls that return when they are done."""
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def recorded(device: torch.device, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call as one launch: a CUDA graph of it on a GPU, the call itself elsewhere."""
    call()  # compiles kernels, and makes what is kept between calls
    if device.type != "cuda":
        return call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay


def now(device: torch.device) -> float:
    """The wall clock, in seconds, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tidy(device: torch.device) -> None:
    """Give memory back that is held for later, where that can be."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Measure the peak from here on, where that can be."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Most bytes that were allocated on a GPU since ``forget_peak``; elsewhere the most that the process had."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def reserved(device: torch.device) -> int | None:
    """Bytes that PyTorch holds on a GPU, pools of recordings included; None elsewhere."""
    return int(torch.cuda.memory_reserved(device)) if device.type == "cuda" else None
