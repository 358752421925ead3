"""The drafter's side, put together."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from specdec.protocols import Drafter, Forecast, Verifier
from specdec.runtime import CachedModel, models_of
from specdec.trace import Clock
from specdec.worker import Absent, DraftWorker


def worker_for(drafter: Drafter, forecast: Forecast, verifier: Verifier, clock: Clock) -> DraftWorker:
    """A worker in the target's process, that shares weights with it, but neither a cache nor a module."""
    return assembled(drafter, forecast, absent(drafter, verifier), clock)


def absent(drafter: object, verifier: Verifier) -> Absent:
    """What a drafter in the target's process may know of a target that works at the same time."""
    network: Any = verifier.model.network
    for model in models_of(drafter):
        if model.network.module is network.module:
            model.network = network.twin()
    tokenizer = getattr(verifier, "tokenizer", None)
    device = device_of(drafter, verifier.device)
    return Absent(verifier.vocab_size, device, tokenizer, Replica(network.twin()))


def borrows(drafter: object) -> bool:
    """Whether a drafter needs the target's network: runs its layers, or uses its embedding, norm or head."""
    return bool(getattr(drafter, "borrows", False))


def device_of(drafter: object, target: torch.device) -> torch.device:
    """Where a drafter works: on the device that it names, or else on the target's."""
    device = getattr(drafter, "device", None)
    return target if device is None else torch.device(device)


def assembled(
    drafter: Drafter, forecast: Forecast, target: Absent, clock: Clock = time.perf_counter
) -> DraftWorker:
    """A worker on the drafter's device."""
    device = device_of(drafter, target.device)
    return DraftWorker(drafter, forecast, device, replace(target, device=device), clock)


class Replica(CachedModel):
    """A target's network with a cache of its own; so have its early exits."""

    def early_exit(self, layers: int) -> CachedModel:
        """The first ``layers`` layers, with a cache of their own."""
        return CachedModel(self.network.early_exit(layers))
