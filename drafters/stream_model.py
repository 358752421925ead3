"""A head on the target's states that says several tokens at every place, by streams (arXiv 2402.11131).

B rows, S token slots, W tokens of one forward, Y places that are read, N nodes of the tree, E streams of a place,
F = E + 1 of them and the main one, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from drafters.feature import FeatureModel, FeatureNetwork, along, paired
from specdec.runtime.feed import Hanging


class StreamModel(FeatureModel):
    """A ``StreamHead`` with a cache.

    The streams of a place are nodes of the tree: the first hangs off the place, each other one off the one
    before, so that it sees what the place sees and the streams before it. They say the token at their end, and
    nothing is ever hung off them again.

    A node reads the newest state of the target that there is, the one before the last committed token: what it
    says follows from tokens alone, so that guessed ones can be read side by side.
    """

    in_turn = False

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__(network)
        head: Any = network.head
        self._streams_EX: Tensor = head.streams.weight
        self._lags_LX: Tensor = head.lags.weight
        self._number_N = torch.zeros(0, dtype=torch.int64)  # of each node: 0 is the main stream
        self._rooted = 0  # streams of the last committed token, at the end of the tree that is hung next

    def open(
        self, tokens_BS: Tensor, lengths_B: Tensor, streams: int, behind: int | None, reads: int = 0
    ) -> Tensor:
        """Read the rows, and streams of their last token: logits [B, 1 + streams, V]; see ``advance``."""
        last_B1 = tokens_BS[:, 1:].gather(1, paired(lengths_B)[:, None] - 1)
        parent_BE = torch.arange(-1, streams - 1, device=last_B1.device).expand(len(last_B1), -1)
        self._rooted = streams
        nodes = last_B1.expand_as(parent_BE), parent_BE
        return self.advance(tokens_BS, lengths_B, nodes, behind=behind, chain=True, reads=reads).logits

    def read(self, tokens_BY: Tensor, parents_BY: Tensor, streams: int) -> Tensor:
        """Add nodes, each with streams of its own: logits [B, F, Y, V]. Only nodes may be parents, in order."""
        fed, (rows, places) = len(self._number_N), tokens_BY.shape
        below_S = torch.arange(fed, fed + streams * places, device=tokens_BY.device).expand(rows, -1)
        self._more(torch.arange((1 + streams) * places, device=tokens_BY.device) // places)
        logits = super().grow(tokens_BY.repeat(1, 1 + streams), torch.cat([parents_BY, below_S], 1))
        return logits.unflatten(1, (1 + streams, places))

    def grow(self, tokens_BW: Tensor, parents_BW: Tensor, chain: bool = False) -> Tensor:
        """See ``CachedModel.grow``."""
        self._more(torch.zeros_like(tokens_BW[0]))
        return super().grow(tokens_BW, parents_BW, chain)

    def _more(self, number_W: Tensor) -> None:
        self._number_N = torch.cat([self._number_N, number_W])

    def _hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        super()._hang(lengths_B, nodes, chain, static)
        size, streams, self._rooted = nodes[0].shape[1], self._rooted, 0
        self._number_N = torch.arange(streams - size + 1, streams + 1, device=lengths_B.device).clamp(min=0)

    def _drafted(self, node_BW: Tensor, position_BW: Tensor, hanging: Hanging) -> Tensor:
        held_B1X, number_BW = along(self._given, hanging.lengths[:, None] - 1), self._number_N[node_BW]
        # A stream of a place is as far behind as the place.
        lag_BW = (position_BW - number_BW - hanging.lengths[:, None] + 1).clamp(0, len(self._lags_LX))
        return held_B1X + pad(self._streams_EX, (0, 0, 1, 0))[number_BW] + pad(self._lags_LX, (0, 0, 1, 0))[lag_BW]
