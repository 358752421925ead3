"""Kernels of our own, in Triton, each with the same in PyTorch beside it."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor


def here(tensor: Tensor) -> bool:
    """Whether kernels of ours can work on a tensor: it is on a GPU, and Triton is there."""
    return tensor.is_cuda and find_spec("triton") is not None
