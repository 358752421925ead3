"""A model's own final norm and head on a state from between its layers. B rows, W tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Glance:
    """What is to be done with a state as soon as it is there, while the layers behind it still have to run.

    Attributes:
        layer: after how many layers.
        take: gets the state, [B, W, hidden].
    """

    layer: int
    take: Callable[[Tensor], None]


class Stand(nn.Module):
    """In place of all layers: gives a state, whatever comes in.

    Args:
        layer: one of those it stands for, whose attributes the model may ask for.
        state: [B, W, hidden].
        tuples: whether layers of this model answer with tuples.
    """

    def __init__(self, layer: nn.Module, state: Tensor, tuples: bool) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not a child: its weights are none of these
        self._state, self._tuples = state, tuples

    def __getattr__(self, name: str) -> Any:
        layer = self.__dict__.get("_layer")
        return super().__getattr__(name) if layer is None or name in self.__dict__ else getattr(layer, name)

    def forward(self, *_: Any, **__: Any) -> Any:
        """The state."""
        return (self._state,) if self._tuples else self._state
