"""Tiny models: a target, and a drafter that agrees with it now and then."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES


@pytest.fixture(scope="session")
def tiny_target():
    return FAMILIES["llama"]()


@pytest.fixture(scope="session")
def tiny_draft(tiny_target):
    model = copy.deepcopy(tiny_target)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * weight.std() * torch.randn(weight.shape, generator=generator))
    return model
