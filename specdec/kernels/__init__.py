"""Kernels of our own, in Triton, each with the same in PyTorch beside it."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def here(tensor: Tensor) -> bool:
    """Whether kernels of ours can work on a tensor: it is on the current GPU, where they are launched."""
    return tensor.is_cuda and compiler() and tensor.get_device() == torch.cuda.current_device()


@cache
def compiler() -> bool:
    """Whether Triton is there."""
    return find_spec("triton") is not None
