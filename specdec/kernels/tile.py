"""How a weight is cut for the programs that read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

TINY = 1 << 20  # elements of a weight
HOPPER_ROOM = 227 << 10  # bytes of shared memory that a program can have


@dataclass(frozen=True)
class Tile:
    """How a matrix is cut.

    Attributes:
        outputs, inputs: rows of the weight and columns of them that one program reads per step.
        warps, stages: of one program.
        cores: whether tensor cores multiply.
        slices: of a step's inputs, that warps sum by themselves; with tensor cores only.
    """

    outputs: int
    inputs: int
    warps: int
    stages: int
    cores: bool
    slices: int = 1


def tile_for(tokens: int, outputs: int, inputs: int, gated: bool, size: int = 2, room: int = HOPPER_ROOM) -> Tile:
    """Enough programs for every multiprocessor, and enough bytes in flight for each; measured on H100 and H200.

    Where the weight is small, one or two tokens are fastest without tensor cores; more are with them, the inputs
    cut into slices unless there are many outputs. Where it is large, tensor cores are fastest even for one token,
    but where there are few outputs.

    Args:
        tokens, outputs, inputs: sizes of the product.
        gated: whether there are two weights.
        size: bytes of an element.
        room: bytes of shared memory that a program can have.
    """
    small, wide = outputs * inputs <= 1 << 22, outputs > inputs
    sliced = small and tokens <= 16 and size == 2  # in float32 there are no tensor cores to wait for
    if size == 2 and outputs * inputs <= TINY and tokens > 2:
        tile = tiny(tokens, inputs, gated, wide)
    elif gated:
        several = Tile(32, 128, 2, 6, True, slices=2) if sliced else Tile(64, 128, 8, 3, True)
        tile = Tile(2, 1024, 4, 2, False) if small and tokens == 1 else several
    elif wide:
        # The norm keeps squares of all its inputs' tokens in registers: of many tokens, fewer inputs fit.
        many = Tile(64, 256, 4, 4, True) if tokens <= 16 else Tile(64, 128, 8, 4, True)
        tile = Tile(4, 1024, 4, 2, False) if small and tokens == 1 else many
    elif small:
        several = Tile(16, 512, 2, 4, True, slices=2) if sliced else Tile(16, 512, 2, 3, True)
        tile = Tile(2, 1024, 4, 2, False) if tokens <= 2 else several
    else:
        tile = Tile(8, 1024, 4, 2, False) if tokens == 1 else Tile(64, 256, 4, 5, True)
    rows = tile.outputs * (2 if gated else 1) + max(16, 1 << (tokens - 1).bit_length())
    return replace(tile, stages=max(1, min(tile.stages, room // (rows * tile.inputs * size))))


def tiny(tokens: int, inputs: int, gated: bool, wide: bool) -> Tile:
    """For the weights of a target of a hundred million parameters: even of 16 outputs a program few are made, so
    that each has to be quick. Measured on an H100, products of 576 to 1536 features."""
    if tokens <= 16:
        return Tile(16, 128 if gated or wide else 256 if inputs < 1024 else 512, 2, 4, True, slices=4)
    if gated or wide:
        return Tile(16, 128, 4, 4, True)
    return Tile(16, 64, 2, 4, True) if inputs < 1024 else Tile(16, 512, 2, 3, True)


@cache
def room_on(device: torch.device) -> int:
    """Bytes of shared memory that a program can have on a device."""
    found: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return 0 if found is None else int(found.shared_memory_per_block_optin)
