"""How a weight is cut for the programs that read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

HOPPER_ROOM = 227 << 10  # bytes of shared memory that a program can have


@dataclass(frozen=True)
class Tile:
    """How a matrix is cut.

    Attributes:
        outputs, inputs: rows of the weight and columns of them that one program reads per step.
        warps, stages: of one program.
        cores: whether tensor cores multiply.
    """

    outputs: int
    inputs: int
    warps: int
    stages: int
    cores: bool


def tile_for(tokens: int, outputs: int, inputs: int, gated: bool, size: int = 2, room: int = HOPPER_ROOM) -> Tile:
    """Enough programs for every multiprocessor, and enough bytes in flight for each; measured on H100 and H200.

    Where the weight is small, few tokens are fastest without tensor cores: one in any case, more where there are
    few outputs. Where it is large, tensor cores are, even for one token, but where there are few outputs.

    Args:
        tokens, outputs, inputs: sizes of the product.
        gated: whether there are two weights.
        size: bytes of an element.
        room: bytes of shared memory that a program can have.
    """
    small, wide = outputs * inputs <= 1 << 22, outputs > inputs
    if gated:
        few = Tile(2, 1024, 4, 2, False) if tokens == 1 else Tile(4, 256, 4, 2, False)
        tile = few if small and tokens <= 2 else Tile(64, 128, 8, 3, True)
    elif wide:
        # The norm keeps squares of all its inputs' tokens in registers: of many tokens, fewer inputs fit.
        many = Tile(64, 256, 4, 4, True) if tokens <= 16 else Tile(64, 128, 8, 4, True)
        tile = Tile(4, 1024, 4, 2, False) if small and tokens == 1 else many
    elif small:
        tile = Tile(2, 1024, 4, 2, False) if tokens <= 4 else Tile(16, 512, 2, 3, True)
    else:
        tile = Tile(8, 1024, 4, 2, False) if tokens == 1 else Tile(64, 256, 4, 5, True)
    rows = tile.outputs * (2 if gated else 1) + max(16, 1 << (tokens - 1).bit_length())
    return replace(tile, stages=max(1, min(tile.stages, room // (rows * tile.inputs * size))))


@cache
def room_on(device: torch.device) -> int:
    """Bytes of shared memory that a program can have on a device."""
    found: Any = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return 0 if found is None else int(found.shared_memory_per_block_optin)
