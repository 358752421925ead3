"""The first layers of a network without any head. B rows, W tokens of one forward."""

from __future__ import annotations

import copy

from torch import Tensor

from specdec.runtime.attention import Window
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_views import without_head
from specdec.types import Tap


class Trunk:
    """What the layers of an early exit make of tokens, for a head of one's own.

    Args:
        exit: a network's first layers; see ``Network.early_exit``. Nothing of it is changed or copied.
    """

    def __init__(self, exit: Network) -> None:
        self._network = copy.copy(exit)
        self._network.module = without_head(exit.module)
        self._tap = Tap(exit.depth)
        if exit.lean is not None:
            from specdec.runtime.lean import HeadlessNetwork

            self._network.lean = HeadlessNetwork.of(exit.lean)

    def __call__(self, tokens_BW: Tensor, positions_BW: Tensor, window: Window) -> Tensor:
        """States [B, W, hidden] behind the last of its layers, before any norm; see ``Network``."""
        _, states = self._network(tokens_BW, positions_BW, window, 1, (self._tap,))
        return states[self._tap]
