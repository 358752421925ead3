"""A draft model that says a whole block of tokens in one forward, each without knowing the others.

B rows, S token slots, W tokens of a block, N nodes, K tapped tokens, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from drafters.feature import FeatureHead, FeatureNetwork
from drafters.fitting import same_target
from drafters.state_drafter import StateHead, StateModel
from specdec.runtime.huggingface import Network
from specdec.runtime.model import Scores
from specdec.runtime.readout import Glance
from specdec.types import Advice, Tap


class BlockHead(StateHead, Protocol):
    """A module that reads features of the target, and fills a block behind them."""

    @property
    def block_size(self) -> int:
        """W."""
        ...

    def project(self, features_BKX: Tensor, positions_BK: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of features in every layer."""
        ...

    def fill(
        self,
        last_B1: Tensor,
        positions_B1: Tensor,
        before: list[tuple[Tensor, Tensor]],
        seen_BS: Tensor,
        target: Network,
    ) -> Tensor:
        """[B, W - 1, V]: logits of the places behind a token, over the target's ids."""
        ...


class BlockModel(StateModel):
    """A head with keys and values of what it has read of the target.

    Slot i of the cache holds what each layer makes of the feature of token i, which is read once. Nothing of what
    is drafted is ever stored. A feature that never came is not seen.

    What is said of a place does not depend on the tokens drafted before it: ``advance`` says all of it, and
    ``grow`` looks up what was said at a node's depth.
    """

    remembers = False

    def __init__(self, head: BlockHead, target: Network) -> None:
        network = FeatureNetwork(cast(FeatureHead, head), target)
        super().__init__(cast(Network, network))
        self._head, self._target = head, target
        self._known = torch.zeros(0, 0, dtype=torch.bool)  # [B, slots + 1]
        self._said = torch.zeros(0, 0, 0)  # [B, W - 1, V], by depth of the token before
        self._depths = torch.zeros(0, 0, dtype=torch.int64)  # [B, N], of nodes

    def serves(self, target: Network) -> bool:
        """Whether it borrows of a target with these very weights."""
        return same_target(self._target, target)

    def begin(self, rows: int, slots: int, longest: int | None = None, stay: bool = False) -> None:
        """Forget everything; see ``CachedModel.begin``."""
        super().begin(rows, slots, longest, stay)
        shape = (rows, self.memory.cache.slots + 1)
        if self._known.shape != shape:
            self._known = torch.zeros(shape, dtype=torch.bool, device=self.device)
        self._known.zero_()
        none_BKX = self._target.head_weight.new_zeros(rows, 0, self._head.width)
        self._write(none_BKX, self.memory.tokens[:, :0])  # so that a first block has something to look at

    def see(self, advice: Advice | None) -> None:
        """Take the target's states of newly committed tokens."""
        if advice is None:
            return
        real_BK = advice.positions >= 0
        place_BK = torch.where(real_BK, advice.positions, self.memory.cache.trash)
        self._write(self._head.feature(advice.states, self._target), place_BK)
        row_B1 = torch.arange(len(place_BK), device=place_BK.device)[:, None]
        self._known[row_B1, place_BK] = real_BK

    def _write(self, features_BKX: Tensor, place_BK: Tensor) -> None:
        cache = self.memory.cache
        for layer, (keys, values) in enumerate(self._head.project(features_BKX, place_BK)):
            cache.write(layer, keys, values, place_BK, None)

    def advance(
        self,
        tokens_BS: Tensor,
        lengths_B: Tensor,
        nodes: tuple[Tensor, Tensor] | None = None,
        taps: tuple[Tap, ...] = (),
        behind: int | None = None,
        chain: bool = False,
        glance: Glance | None = None,
        reads: int = 0,
    ) -> Scores:
        """Fill the block behind the last committed tokens; logits [B, 1, V] are those of its first place.

        ``behind`` says, as in ``CachedModel.advance``, that shapes must not depend on the rows.
        """
        last_B1 = lengths_B[:, None] - 1
        span = self.memory.tokens.shape[1] if behind is not None else int(lengths_B.max()) - 1
        before = [self.memory.cache.read(layer, span) for layer in range(self._head.depth)]
        # Of a row that has ended, more than its tokens may be known.
        seen_BS = self._known[:, :span] & (torch.arange(span, device=last_B1.device) < last_B1)
        self._said = self._head.fill(tokens_BS.gather(1, last_B1), last_B1, before, seen_BS, self._target)
        self._depths = last_B1[:, :0]
        self.memory.follows = True
        return Scores(self._said[:, :1])

    def hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        """Nothing: a block stands behind committed tokens only."""

    def grow(self, tokens_BW: Tensor, parents_BW: Tensor, chain: bool = False) -> Tensor:
        """[B, W, V]: what was said of the place behind each of some nodes, whatever the tokens are."""
        depth_BW = pad(self._depths, (1, 0)).gather(1, parents_BW + 1) + 1
        self._depths = torch.cat([self._depths, depth_BW], 1)
        row_B1: Any = torch.arange(len(depth_BW), device=depth_BW.device)[:, None]
        return self._said[row_B1, depth_BW]

    def remember(self) -> None:
        """Nothing: all that is kept is the target's."""
