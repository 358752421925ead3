"""The inputs of one forward: which tokens go in, where they are written, what they see.

B rows, S token slots, P committed tokens that the cache lacks, N draft nodes, W tokens of the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import tree
from specdec.runtime.attention import Window
from specdec.runtime.cache import KVCache
from specdec.runtime.sight import Sight


@dataclass(frozen=True)
class Hanging:
    """A draft tree that hangs off committed tokens: node n lies in slot ``lengths + n`` of the cache.

    Attributes:
        lengths: int64 [B], committed tokens.
        tokens, parents: int64 [B, N].
        chain: whether every row is known to be a chain.
    """

    lengths: Tensor
    tokens: Tensor
    parents: Tensor
    chain: bool = False

    @property
    def size(self) -> int:
        """N."""
        return self.tokens.shape[1]

    def more(self, tokens_BW: Tensor, parents_BW: Tensor, chain: bool) -> Hanging:
        """The tree with nodes added; ``chain`` says that they go on with its last node."""
        tokens_BN, parents_BN = (
            torch.cat([self.tokens, tokens_BW], 1),
            torch.cat([self.parents, parents_BW], 1),
        )
        return Hanging(self.lengths, tokens_BN, parents_BN, self.chain and chain)


@dataclass(frozen=True)
class Extent:
    """Sizes of a forward, so that nobody must look at the rows to know them.

    Attributes:
        pending: P.
        span: slots that are read.
        start: the first slot, where every row writes to consecutive slots from there, else None.
    """

    pending: int
    span: int
    start: int | None = None

    @classmethod
    def measured(cls, lengths_B: Tensor, held_B: Tensor, nodes: int, fed: int) -> Extent:
        """The smallest, from the rows themselves."""
        lengths, held = lengths_B.tolist(), held_B.tolist()
        pending = max(length - have for length, have in zip(lengths, held, strict=True))
        even = len(set(lengths)) == 1 and len(set(held)) == 1
        start = (held[0] if pending else lengths[0] + fed) if even else None
        return cls(pending, max(lengths) + nodes, start)


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
        sight: the same as ``allowed`` in few words, if that is enough for the attention.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor
    allowed: Tensor | None
    slot_positions: Tensor
    span: int
    triangle: bool
    start: int | None
    sight: Sight | None = None

    @property
    def told(self) -> Tensor:
        """int64 [B, W], the positions, -1 for padding."""
        return torch.where(self.slots >= 0, self.positions, self.slots)

    def window(self, cache: KVCache) -> Window:
        """The attention's side of it."""
        return Window(
            cache,
            self.slots,
            self.start,
            self.span,
            self.allowed,
            self.triangle,
            self.positions,
            self.slot_positions,
            self.sight,
        )


def feed(
    tokens_BS: Tensor,
    held_B: Tensor,
    hanging: Hanging,
    fed: int = 0,
    extent: Extent | None = None,
    brief: bool = False,
) -> Feed:
    """The committed tokens from ``held_B`` on, then the nodes of the tree from index ``fed`` on.

    Rows with fewer committed tokens to feed are padded in front: the last columns of a forward are the last
    committed token and the nodes, in every row.

    Args:
        tokens_BS: committed tokens.
        held_B: int64 [B], how many of them the cache holds.
        hanging: the tree.
        fed: nodes that the cache holds.
        extent: sizes; None measures them, for which the host reads the lengths.
        brief: whether the attention takes a ``Sight`` instead of a mask.
    """
    lengths_B, device = hanging.lengths, tokens_BS.device
    size = extent or Extent.measured(lengths_B, held_B, hanging.size, fed)
    if brief and tokens_BS.is_cuda:
        return _briefly(tokens_BS, held_B, hanging, fed, size)
    place_BP = lengths_B[:, None] + torch.arange(-size.pending, 0, device=device)
    real_BP = place_BP >= held_B[:, None]
    place_BP = place_BP.clamp(min=0)
    index_N = torch.arange(fed, hanging.size, device=device)
    reach_BNN = None if brief and hanging.chain else tree.ancestors(hanging.parents, 1 if hanging.chain else None)
    # The depth of padding does not matter: nobody sees it, and its answer is never read.
    depth_BN = torch.arange(1, hanging.size + 1, device=device) if reach_BNN is None else reach_BNN.sum(-1)
    node_positions_BN = (lengths_B - 1)[:, None] + depth_BN
    positions_BW = _side_by_side(place_BP, node_positions_BN[:, fed:])
    allowed_BWS, sight = None, None
    if brief:
        sight = _sight(lengths_B, positions_BW, None if reach_BNN is None else reach_BNN[:, fed:])
    elif reach_BNN is not None and (fed or size.start is None or size.pending + len(index_N) > 1):
        allowed_BWS = _allowed(place_BP, lengths_B, reach_BNN, fed, size.span)
    return Feed(
        tokens=_side_by_side(tokens_BS.gather(1, place_BP), hanging.tokens[:, fed:]),
        slots=_side_by_side(torch.where(real_BP, place_BP, -1), lengths_B[:, None] + index_N),
        positions=positions_BW,
        allowed=allowed_BWS,
        slot_positions=lengths_B[:, None] if brief else _slot_positions(lengths_B, node_positions_BN, size.span),
        span=size.span,
        triangle=size.start == 0 and hanging.size == 0 and size.pending == size.span,
        start=size.start,
        sight=sight,
    )


def _briefly(tokens_BS: Tensor, held_B: Tensor, hanging: Hanging, fed: int, size: Extent) -> Feed:
    """The same in one kernel, with a ``Sight``."""
    from specdec.kernels.feeding import feeding

    lengths_B, nodes_BN, parents_BN = hanging.lengths, hanging.tokens, hanging.parents
    what = feeding(tokens_BS, held_B, lengths_B, nodes_BN, parents_BN, fed, size.pending, hanging.chain)
    return Feed(
        tokens=what.tokens,
        slots=what.slots,
        positions=what.positions,
        allowed=None,
        slot_positions=lengths_B[:, None],
        span=size.span,
        triangle=size.start == 0 and hanging.size == 0 and size.pending == size.span,
        start=size.start,
        sight=Sight(lengths_B, what.counts, what.lows, what.order),
    )


def _side_by_side(left_BX: Tensor, right_BX: Tensor) -> Tensor:
    """Both in one tensor; the other one as it is where one is empty, which spares a launch."""
    if left_BX.shape[1] and right_BX.shape[1]:
        return torch.cat([left_BX, right_BX], 1)
    return (left_BX if left_BX.shape[1] else right_BX).contiguous()


def _sight(lengths_B: Tensor, positions_BW: Tensor, reach_BNN: Tensor | None) -> Sight:
    """Every token sees the positions up to its own; a tree's nodes find theirs by the order of their ancestors."""
    counts_BW, order_BWD = positions_BW + 1, None
    if reach_BNN is not None and reach_BNN.shape[1]:
        size = reach_BNN.shape[2]
        index_N = torch.arange(size, device=reach_BNN.device)
        path_BND = torch.where(reach_BNN, index_N, size).sort(-1).values
        order_BWD = pad(path_BND % size, (0, 0, positions_BW.shape[1] - reach_BNN.shape[1], 0))
    return Sight(lengths_B, counts_BW, torch.zeros_like(counts_BW), order_BWD)


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
