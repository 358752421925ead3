"""Which nodes of a draft are sound, and how far the target goes along with it. One program per row.

B rows, N nodes, M = N + 1 (the last committed token, then the nodes), F faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Admitted:
    """A draft without what is malformed; see ``specdec.guard.admit``.

    Attributes:
        tokens, parents, depths: int64 [B, N].
        faults: int64 [B, F], 1 where there was one.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    faults: Tensor


def admitted(
    tokens_BN: Tensor, parents_BN: Tensor, base_B: Tensor, lengths_B: Tensor, room_B: Tensor, vocabulary: int,
    fanout: int | None, faults: int,
) -> Admitted:  # fmt: skip
    """The sound rows of a draft without laws, without nodes too deep to be committed.

    Args:
        tokens_BN, parents_BN: the draft, for lengths base_B, with at most ``fanout`` children of a node.
        lengths_B, room_B: int64 [B], committed tokens, and how many may still be.
        vocabulary: V.
        faults: F; beyond the first three they are none.
    """
    rows, size = tokens_BN.shape
    kept_XBN = tokens_BN.new_empty(3, rows, size)
    faults_BF = tokens_BN.new_zeros(rows, faults)
    told = [part.contiguous() for part in (tokens_BN, parents_BN, base_B, lengths_B, room_B)]
    _admit[(rows,)](
        *told, kept_XBN, faults_BF, size, vocabulary, fanout or 0, faults,
        BN=triton.next_power_of_2(size), CHAIN=fanout == 1, RANKED=fanout is not None, num_warps=1,
    )  # fmt: skip
    tokens_BN, parents_BN, depths_BN = kept_XBN.unbind(0)
    return Admitted(tokens_BN, parents_BN, depths_BN, faults_BF)


@triton.jit
def _admit(
    tokens, parents, base, lengths, room, kept, faults, size, vocabulary, fanout, columns,
    BN: tl.constexpr, CHAIN: tl.constexpr, RANKED: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    n = tl.arange(0, BN)
    inside = n < size
    parents += b * size
    parent = tl.load(parents + n, mask=inside, other=-2)
    token = tl.load(tokens + b * size + n, mask=inside, other=0)
    real = parent != -2
    ordered = (parent < n) & (parent >= -1)
    depth = n + 1
    if CHAIN:
        ordered = ordered & (parent == n - 1)
    else:
        depth = n * 0 + 1
        at = parent
        steps = 0
        while (tl.max(at, 0) >= 0) & (steps < size):  # whoever its parents are, it ends
            depth += (at >= 0).to(tl.int32)
            at = tl.load(parents + at, mask=(at >= 0) & (at < size), other=-1)
            steps += 1
        if RANKED:
            other = tl.load(parents + n, mask=inside, other=-2)
            earlier = (parent[:, None] == other[None, :]) & (n[None, :] < n[:, None])
            ordered = ordered & (tl.sum(earlier.to(tl.int32), 1) < fanout)
    above = tl.load(parents + tl.minimum(tl.maximum(parent, 0), size - 1), mask=inside, other=-1)
    lost = (parent >= 0) & (above == -2)
    stale = (tl.load(base + b) != tl.load(lengths + b)).to(tl.int32)
    foreign = tl.max((real & ((token < 0) | (token >= vocabulary))).to(tl.int32), 0)
    wild = tl.max((real & (lost | ~ordered)).to(tl.int32), 0)
    stays = real & (stale + foreign + wild == 0) & (depth < tl.load(room + b))
    place = kept + b * size + n
    step = tl.num_programs(0) * size
    tl.store(place, tl.where(stays, token, 0), mask=inside)
    tl.store(place + step, tl.where(stays, parent, -2), mask=inside)
    tl.store(place + 2 * step, tl.where(stays, depth, 0), mask=inside)
    tl.store(faults + b * columns, stale)
    tl.store(faults + b * columns + 1, foreign)
    tl.store(faults + b * columns + 2, wild)


def followed(
    tokens_BN: Tensor, parents_BN: Tensor, depths_BN: Tensor, token_BM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The deepest path of nodes that are all the token chosen at their parent.

    Args:
        tokens_BN, parents_BN, depths_BN: a draft that was admitted.
        token_BM: int64 [B, M], what was chosen after the last committed token and after each node.

    Returns:
        path int64 [B, N], -1 beyond its end; its length int64 [B]; and what was chosen at its end, int64 [B].
    """
    rows, size = tokens_BN.shape
    path_BN, ends_2B = parents_BN.new_empty(rows, size), parents_BN.new_empty(2, rows)
    told = [part.contiguous() for part in (tokens_BN, parents_BN, depths_BN, token_BM)]
    _follow[(rows,)](*told, path_BN, ends_2B, size, BN=triton.next_power_of_2(size), num_warps=1)
    length_B, last_B = ends_2B.unbind(0)
    return path_BN, length_B, last_B


@triton.jit
def _follow(tokens, parents, depths, chosen, path, ends, size, BN: tl.constexpr):
    b = tl.program_id(0)
    n = tl.arange(0, BN)
    inside = n < size
    tokens += b * size
    parents += b * size
    chosen += b * (size + 1)
    parent = tl.load(parents + n, mask=inside, other=-2)
    depth = tl.load(depths + b * size + n, mask=inside, other=0)
    wanted = tl.load(chosen + 1 + parent, mask=parent >= -1, other=-1)
    reached = (parent >= -1) & (tl.load(tokens + n, mask=inside, other=-2) == wanted)
    at = tl.where(reached, parent, -1)
    while tl.max(at, 0) >= 0:  # parents stand before their children
        going = at >= 0
        above = tl.load(parents + at, mask=going, other=-1)
        wanted = tl.load(chosen + 1 + above, mask=going & (above >= -1), other=-1)
        reached = reached & (~going | (tl.load(tokens + at, mask=going, other=-2) == wanted))
        at = tl.where(reached & going, above, -1)
    length = tl.max(tl.where(reached, depth, 0), 0)
    end = tl.min(tl.where(reached & (depth == length), n, BN), 0)
    end = tl.where(length > 0, end, -1).to(tl.int64)
    tl.store(ends + b, length)
    tl.store(ends + tl.num_programs(0) + b, tl.load(chosen + 1 + end))
    walked = tl.full([BN], -1, tl.int64)
    place = length - 1
    while end >= 0:
        walked = tl.where(n == place, end, walked)
        end = tl.load(parents + end)
        place -= 1
    tl.store(path + b * size + n, walked, mask=inside)
