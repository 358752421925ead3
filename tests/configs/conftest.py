"""A tiny model for every configuration that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chat import save_tiny_chat

from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.redrafter import RecurrentHead
from specdec.runtime import load


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_heads(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Heads for the tiny model, by the drafter that takes them."""
    target = load(tiny_model_dir, dtype="float32", device="cpu").model.network
    kinds = {"medusa": MedusaHeads, "hydra": HydraHeads, "redrafter": RecurrentHead}
    paths = {name: tmp_path_factory.mktemp(name) for name in kinds}
    for name, kind in kinds.items():
        kind.fresh(target).save(paths[name])
    return paths
