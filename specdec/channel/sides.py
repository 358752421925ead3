"""The drafter's side of a target in the same process."""

from __future__ import annotations

from typing import Any, cast

from specdec.protocols import Drafter, Forecast, Verifier
from specdec.runtime import CachedModel
from specdec.worker import Absent, DraftWorker


def worker_for(drafter: Drafter, forecast: Forecast, verifier: Verifier) -> DraftWorker:
    """A worker that shares weights with the target, but neither a cache nor a module."""
    model: Any = getattr(drafter, "model", None)
    own = isinstance(model, CachedModel) and not model.is_view
    device = model.device if own else verifier.device
    if own and model.network.module is verifier.model.network.module:
        model.network = model.network.twin()
    replica = Replica(cast(Any, verifier.model.network).twin())
    return DraftWorker(
        drafter,
        forecast,
        device,
        Absent(verifier.vocab_size, device, getattr(verifier, "tokenizer", None), replica),
    )


class Replica(CachedModel):
    """A target's network with a cache of its own; so have its early exits."""

    def early_exit(self, layers: int) -> CachedModel:
        """The first ``layers`` layers, with a cache of their own."""
        return CachedModel(self.network.early_exit(layers))
