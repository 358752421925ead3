"""An EAGLE-3 head that reads in its target's fused kernels. B rows, W tokens of one forward, X hidden size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from specdec.runtime.huggingface import Network
from specdec.runtime.pair import LeanPair, lean_pair

if TYPE_CHECKING:
    from drafters.eagle3_head import Eagle3Head


class FusedReader:
    """See ``PairReader``: what a head makes of pairs, by its weights as they were when this was made."""

    def __init__(self, head: Eagle3Head, pair: LeanPair) -> None:
        self._head, self.pair = head, pair

    def read(
        self, tokens_BW: Tensor, features_BWX: Tensor, positions_BW: Tensor, target: Network, **attention: Any
    ) -> Tensor:
        """[B, W, X]: what it makes of each pair; ``attention`` is the forward's ``window``."""
        return self.pair(self._head.embedded(tokens_BW, target), features_BWX, positions_BW, **attention)

    def logits(self, own_BWX: Tensor, target: Network) -> Tensor:
        """[B, W, V] over the target's ids, from what it made."""
        return self._head.spread(self.pair.read_out(own_BWX), target)


def fused(head: Eagle3Head, target: Network) -> FusedReader | None:
    """A head in fused kernels; None where they do not fit."""
    pair = lean_pair(head.midlayer, head.norm, head.lm_head, head.rotary, target)
    return None if pair is None else FusedReader(head, pair)
