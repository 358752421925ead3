"""A tiny model for every configuration that needs one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_chat import save_tiny_chat


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("tiny"))
