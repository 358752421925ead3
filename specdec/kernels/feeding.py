"""The inputs of one forward over a draft tree, in one kernel.

B rows, S token slots, P committed tokens that the cache lacks, N draft nodes, W tokens of the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

FACTS = 5  # tokens, slots, positions, counts, lows


@dataclass(frozen=True)
class Fed:
    """What ``specdec.runtime.feed.feed`` says of a forward's tokens; see ``Feed`` and ``Sight``.

    Attributes:
        tokens, slots, positions, counts, lows: int64 [B, W].
        order: int64 [B, W, N]; None for a chain.
    """

    tokens: Tensor
    slots: Tensor
    positions: Tensor
    counts: Tensor
    lows: Tensor
    order: Tensor | None


def feeding(
    tokens_BS: Tensor, held_B: Tensor, lengths_B: Tensor, nodes_BN: Tensor, parents_BN: Tensor, fed: int,
    pending: int, chain: bool,
) -> Fed:  # fmt: skip
    """The last ``pending`` committed tokens, then the nodes from index ``fed`` on, and the way to each of them.

    Args:
        tokens_BS: committed tokens; lengths_B: int64 [B], how many; held_B: int64 [B], how many the cache holds.
        nodes_BN, parents_BN: the tree, whose node n lies in slot ``lengths + n``.
        fed: nodes that the cache holds.
        pending: P.
        chain: whether every row of the tree is known to be a chain.
    """
    rows, size = nodes_BN.shape
    width = pending + size - fed
    facts_XBW = torch.empty(FACTS, rows, width, dtype=torch.int64, device=tokens_BS.device)
    order_BWN = None if chain or size == 0 else facts_XBW.new_empty(rows, width, size)
    told = [part.contiguous() for part in (tokens_BS, held_B, lengths_B, nodes_BN, parents_BN)]
    _feed[rows, width](
        *told, facts_XBW, facts_XBW if order_BWN is None else order_BWN, tokens_BS.shape[1], size, fed, pending,
        BN=triton.next_power_of_2(max(1, size)), TREE=order_BWN is not None, num_warps=1,
    )  # fmt: skip
    tokens_BW, slots_BW, positions_BW, counts_BW, lows_BW = facts_XBW.unbind(0)
    return Fed(tokens_BW, slots_BW, positions_BW, counts_BW, lows_BW, order_BWN)


@triton.jit
def _feed(
    tokens, held, lengths, nodes, parents, facts, orders, slots, size, fed, pending,
    BN: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """One token: which, where it is written, what it sees."""
    b, w = tl.program_id(0), tl.program_id(1)
    width = tl.num_programs(1)
    length = tl.load(lengths + b)
    node = fed + w - pending
    depth = node + 1  # of a chain
    order = tl.zeros([BN], tl.int64)
    n = tl.arange(0, BN)
    if TREE:
        above = tl.load(parents + b * size + n, mask=n < size, other=-1)
        depth = 0
        at = node
        while (at >= 0) & (w >= pending) & (depth < size):  # whoever its parents are, it ends
            depth += 1
            at = tl.sum(tl.where(n == at, above, 0), 0).to(tl.int32)
        at = node
        rank = depth - 1
        while (rank >= 0) & (w >= pending):
            order = tl.where(n == rank, at, order)
            rank -= 1
            at = tl.sum(tl.where(n == at, above, 0), 0).to(tl.int32)
        tl.store(orders + (b * width + w) * size + n, order, mask=n < size)
    place = tl.maximum(length - pending + w, 0)
    if w < pending:
        token = tl.load(tokens + b * slots + place)
        slot = tl.where((place >= tl.load(held + b)) & (length - pending + w >= 0), place, -1)
        position = place
    else:
        token = tl.load(nodes + b * size + node)
        slot = length + node
        position = length - 1 + depth
    fact = facts + b * width + w
    step = tl.num_programs(0) * width
    tl.store(fact, token)
    tl.store(fact + step, slot)
    tl.store(fact + 2 * step, position)
    tl.store(fact + 3 * step, position + 1)
    tl.store(fact + 4 * step, position * 0)
