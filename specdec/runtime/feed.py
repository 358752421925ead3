"""The inputs of one forward: which tokens go in, where they are written, what they see.

B rows, S token slots, P committed tokens that the cache lacks, N draft nodes, W tokens of the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec import tree
from specdec.runtime.attention import Window
from specdec.runtime.cache import KVCache


@dataclass(frozen=True)
class Hanging:
    """A draft tree that hangs off committed tokens: node n lies in slot ``lengths + n`` of the cache.

    Attributes:
        lengths: int64 [B], committed tokens.
        tokens, parents: int64 [B, N].
    """

    lengths: Tensor
    tokens: Tensor
    parents: Tensor

    @property
    def size(self) -> int:
        """N."""
        return self.tokens.shape[1]

    def more(self, tokens_BW: Tensor, parents_BW: Tensor) -> Hanging:
        """The tree with nodes added."""
        tokens_BN, parents_BN = (
            torch.cat([self.tokens, tokens_BW], 1),
            torch.cat([self.parents, parents_BW], 1),
        )
        return Hanging(self.lengths, tokens_BN, parents_BN)


@dataclass(frozen=True)
class Feed:
    """Tokens of one forward.

    Attributes:
        tokens: int64 [B, W].
        slots: int64 [B, W], slot of the cache each is written to; -1 for padding.
        positions: int64 [B, W].
        allowed: bool [B, W, span], None where each sees all.
        slot_positions: int64 [B, span].
        span: slots that are read.
        triangle: whether this is a prefill in which all rows begin at slot 0 and nothing is padding.
        start: the first slot, where every row writes to consecutive slots from there, else None.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor
    allowed: Tensor | None
    slot_positions: Tensor
    span: int
    triangle: bool
    start: int | None

    def window(self, cache: KVCache) -> Window:
        """The attention's side of it."""
        slots_BW = torch.where(self.slots >= 0, self.slots, cache.trash)
        return Window(
            cache,
            slots_BW,
            self.start,
            self.span,
            self.allowed,
            self.triangle,
            self.positions,
            self.slot_positions,
        )


def feed(tokens_BS: Tensor, held_B: Tensor, hanging: Hanging, fed: int = 0) -> Feed:
    """The committed tokens from ``held_B`` on, then the nodes of the tree from index ``fed`` on.

    Rows with fewer committed tokens to feed are padded in front: the last columns of a forward are the last
    committed token and the nodes, in every row.
    """
    lengths_B, device = hanging.lengths, tokens_BS.device
    lengths, held = lengths_B.tolist(), held_B.tolist()
    pending = max(length - have for length, have in zip(lengths, held, strict=True))
    span = max(lengths) + hanging.size
    place_BP = lengths_B[:, None] + torch.arange(-pending, 0, device=device)
    real_BP = place_BP >= held_B[:, None]
    place_BP = place_BP.clamp(min=0)
    index_N = torch.arange(fed, hanging.size, device=device)
    reach_BNN = tree.ancestors(hanging.parents)
    # The depth of padding does not matter: nobody sees it, and its answer is never read.
    node_positions_BN = lengths_B[:, None] + reach_BNN.sum(-1) - 1
    even = len(set(lengths)) == 1 and len(set(held)) == 1
    alone = even and pending + len(index_N) == 1
    return Feed(
        tokens=torch.cat([tokens_BS.gather(1, place_BP), hanging.tokens[:, fed:]], 1),
        slots=torch.cat([torch.where(real_BP, place_BP, -1), lengths_B[:, None] + index_N], 1),
        positions=torch.cat([place_BP, node_positions_BN[:, fed:]], 1),
        allowed=None if alone and not fed else _allowed(place_BP, lengths_B, reach_BNN, fed, span),
        slot_positions=_slot_positions(lengths_B, node_positions_BN, span),
        span=span,
        triangle=even and held[0] == 0 and hanging.size == 0,
        start=(held[0] if pending else lengths[0] + fed) if even else None,
    )


def _allowed(place_BP: Tensor, lengths_B: Tensor, reach_BNN: Tensor, fed: int, span: int) -> Tensor:
    """bool [B, W, span]: a committed token sees what lies before it, a node also its ancestors."""
    slot_S = torch.arange(span, device=place_BP.device)
    before_BPS = slot_S <= place_BP[..., None]
    size = reach_BNN.shape[1]
    if size == 0:
        return before_BPS
    committed_BNS = (slot_S < lengths_B[:, None, None]).repeat(1, size - fed, 1)
    where_BNN = (lengths_B[:, None] + slot_S[:size])[:, None].expand(-1, size - fed, -1)
    return torch.cat([before_BPS, committed_BNS.scatter(2, where_BNN, reach_BNN[:, fed:])], 1)


def _slot_positions(lengths_B: Tensor, node_positions_BN: Tensor, span: int) -> Tensor:
    slot_BS = torch.arange(span, device=lengths_B.device).expand(len(lengths_B), -1)
    if node_positions_BN.shape[1] == 0:
        return slot_BS
    where_BN = lengths_B[:, None] + slot_BS[:, : node_positions_BN.shape[1]]
    return slot_BS.scatter(1, where_BN, node_positions_BN)
