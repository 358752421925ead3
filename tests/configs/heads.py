"""Checkpoints of draft heads for every configuration that needs one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from drafters.adapter_head import AdapterHead
from drafters.dflash import DFlashHead
from drafters.mtp import MTPHead

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 64}


def adapter(directory: Path) -> None:
    AdapterHead({**SIZES, "exit_layer": 1}).save(directory)


def dflash(directory: Path) -> None:
    chosen = {"mask_token_id": 0, "target_layer_ids": [0]}
    DFlashHead({**SIZES, "num_hidden_layers": 1, "block_size": 4, "dflash_config": chosen}).save(directory)


def mtp(directory: Path) -> None:
    MTPHead({**SIZES, "num_hidden_layers": 2}).save(directory)


HEADS: dict[str, Callable[[Path], None]] = {"adapter": adapter, "dflash": dflash, "mtp": mtp}
