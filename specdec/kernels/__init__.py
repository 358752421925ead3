"""Kernels of our own, in Triton, each with the same in PyTorch beside it."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def here(tensor: Tensor) -> bool:
    """Whether kernels of ours can work on a tensor: it is on the current GPU, where they are launched."""
    return tensor.is_cuda and tensor.get_device() == torch.cuda.current_device() and compile_on(tensor.device)


@cache
def compile_on(device: torch.device) -> bool:
    """Whether Triton is there and makes kernels for a GPU, which needs a C compiler and a GPU that it knows."""
    if find_spec("triton") is None:
        return False
    try:
        from specdec.kernels.choice import likeliest

        return likeliest(torch.arange(3.0, device=device)).tolist() == 2
    except Exception as error:  # whatever a compiler makes of a machine that it has not met
        log.warning("no kernels of ours on %s, rounds are many operations: %s", device, error)
        return False
