"""The drafter's side, put together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specdec.protocols import Drafter, Forecast, Verifier
from specdec.runtime import CachedModel
from specdec.worker import Absent, DraftWorker


def worker_for(drafter: Drafter, forecast: Forecast, verifier: Verifier) -> DraftWorker:
    """A worker in the target's process, that shares weights with it, but neither a cache nor a module."""
    network: Any = verifier.model.network
    model: Any = getattr(drafter, "model", None)
    if isinstance(model, CachedModel) and model.network.module is network.module:
        model.network = network.twin()
    tokenizer = getattr(verifier, "tokenizer", None)
    target = Absent(verifier.vocab_size, verifier.device, tokenizer, Replica(network.twin()))
    return assembled(drafter, forecast, target)


def assembled(drafter: Drafter, forecast: Forecast, target: Absent) -> DraftWorker:
    """A worker on the device of the drafter's model, or else on the target's."""
    model: Any = getattr(drafter, "model", None)
    own = isinstance(model, CachedModel) and not model.is_view
    device = model.device if own else target.device
    return DraftWorker(drafter, forecast, device, replace(target, device=device))


class Replica(CachedModel):
    """A target's network with a cache of its own; so have its early exits."""

    def early_exit(self, layers: int) -> CachedModel:
        """The first ``layers`` layers, with a cache of their own."""
        return CachedModel(self.network.early_exit(layers))
