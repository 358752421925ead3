"""Where a cache lay when something was recorded on it."""

from __future__ import annotations

from dataclasses import dataclass

from specdec.runtime.itself import Itself


@dataclass(frozen=True)
class Place:
    """Where a model's cache lay when something was recorded on it. Neither of them is kept alive."""

    memory: Itself
    cache: Itself
    slots: int

    @property
    def stands(self) -> bool:
        """Whether it still lies there."""
        memory, cache = self.memory.value, self.cache.value
        return cache is not None and memory is not None and memory.cache is cache and cache.slots == self.slots
