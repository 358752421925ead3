"""One model on one device: its KV cache, its attention, how it is loaded."""

from specdec.runtime.loading import load
from specdec.runtime.model import CachedModel, models_of

__all__ = ["CachedModel", "load", "models_of"]
