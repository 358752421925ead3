"""A tiny model for every configuration that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chat import save_tiny_chat

from drafters.adapter_head import AdapterHead
from drafters.dflash import DFlashHead
from drafters.eagle import EagleHead
from drafters.eagle3_head import Eagle3Head
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.mtp import MTPHead
from drafters.redrafter import RecurrentHead
from drafters.stream_head import StreamHead
from drafters.trainable import FrozenTarget
from specdec.runtime import load


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_heads(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Heads for the tiny model, by the drafter that takes them."""
    target = FrozenTarget(load(tiny_model_dir, dtype="float32", device="cpu").model.network)
    block = {"block_size": 4, "dflash_config": {"mask_token_id": 0, "target_layer_ids": [0]}}
    heads = {
        "medusa": MedusaHeads.fresh(target),
        "hydra": HydraHeads.fresh(target),
        "redrafter": RecurrentHead.fresh(target),
        "eagle": EagleHead.fresh(target),
        "eagle3": Eagle3Head.fresh(target),
        "stream": StreamHead.fresh(target),
        "adapter": AdapterHead.fresh(target),
        "mtp": MTPHead({**target.sizes, "num_hidden_layers": 2}),
        "dflash": DFlashHead({**target.sizes, **block}),
    }
    paths = {name: tmp_path_factory.mktemp(name) for name in heads}
    for name, head in heads.items():
        head.save(paths[name])
    return paths
