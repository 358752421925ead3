"""One model on one device: its KV cache, its attention, how it is loaded."""

from specdec.runtime.loading import load
from specdec.runtime.model import CachedModel

__all__ = ["CachedModel", "load"]
