"""The rows after a verdict, what is told of it, and what a cache still holds of rows. One program per row.

B rows, S token slots, N nodes, D depth slots of a path, J = D + 1 new tokens, P committed tokens that were fed,
W = P + N tokens of a forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # slots of one step


def appended(
    rows: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], nodes_BN: Tensor, verdict: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, lengths and ends of rows behind an accepted path; see ``Sequences.append``.

    Args:
        rows: tokens int64 [B, S], lengths, limits int64 [B], ended bool [B], end tokens int64 [K].
        nodes_BN: tokens of the draft.
        verdict: path [B, D], accepted and token int64 [B].
    """
    tokens_BS, lengths_B, limits_B, ended_B, stop_K = (part.contiguous() for part in rows)
    path_BD, accepted_B, token_B = (part.contiguous() for part in verdict)
    after = torch.empty_like(tokens_BS), torch.empty_like(lengths_B), torch.empty_like(ended_B)
    _append[(len(tokens_BS),)](
        tokens_BS, lengths_B, limits_B, ended_B, stop_K, nodes_BN.contiguous(), path_BD, accepted_B, token_B,
        *after, tokens_BS.shape[1], nodes_BN.shape[1], path_BD.shape[1],
        STOPS=len(stop_K), BJ=triton.next_power_of_2(path_BD.shape[1] + 1), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return after


@triton.jit
def _append(
    tokens, lengths, limits, ended, stop, nodes, path, accepted, last, tokens_after, lengths_after, ended_after,
    slots, size, depth, STOPS: tl.constexpr, BJ: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    length = tl.load(lengths + b)
    limit = tl.load(limits + b)
    over = tl.load(ended + b).to(tl.int32) != 0
    took = tl.load(accepted + b)
    behind = tl.load(last + b)
    path += b * depth
    nodes += b * size
    j = tl.arange(0, BJ)
    token = tl.load(nodes + tl.load(path + j, mask=j < took, other=0), mask=j < took, other=0)
    token = tl.where(j == took, behind, token)
    stopping = j < 0
    for k in tl.static_range(STOPS):
        stopping = stopping | (token == tl.load(stop + k))
    first = tl.min(tl.where(stopping & (j <= took), j, BJ), 0)
    count = tl.where(first < BJ, first, took) + 1
    count = tl.minimum(count, tl.where(over, 0, limit - length))
    tl.store(lengths_after + b, length + count)
    tl.store(ended_after + b, over | (first < count) | (length + count >= limit))
    start = slots * 0
    while start < slots:
        s = start + tl.arange(0, BLOCK)
        inside = s < slots
        behind_length = s - length
        fresh = (behind_length >= 0) & (behind_length < count)
        drafted = fresh & (behind_length < took)
        new = tl.load(nodes + tl.load(path + behind_length, mask=drafted, other=0), mask=drafted, other=0)
        new = tl.where(behind_length == took, behind, new)
        old = tl.load(tokens + b * slots + s, mask=inside, other=0)
        tl.store(tokens_after + b * slots + s, tl.where(fresh, new, old), mask=inside)
        start += BLOCK


def reported(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], draft: tuple[Tensor, Tensor],
    verdict: tuple[Tensor, Tensor, Tensor], faults_BF: Tensor, facts: int,
) -> Tensor:  # fmt: skip
    """int64 [B, facts + F + J]; see ``specdec.report.report``.

    Args:
        before, after: ended bool [B], lengths int64 [B].
        draft: tokens and depths [B, N].
        verdict: path [B, D], accepted and token int64 [B].
        faults_BF: what was wrong with the draft.
        facts: columns before the faults.
    """
    told = [part.contiguous() for part in (*before, *after, *draft, *verdict, faults_BF)]
    (rows, size), depth, faults = draft[0].shape, verdict[0].shape[1], faults_BF.shape[1]
    table_BX = before[1].new_empty(rows, facts + faults + depth + 1)
    _report[(rows,)](
        *told, table_BX, size, depth, faults, facts, BN=triton.next_power_of_2(max(1, size)),
        BJ=triton.next_power_of_2(depth + 1), BF=triton.next_power_of_2(faults), num_warps=1,
    )  # fmt: skip
    return table_BX


@triton.jit
def _report(
    ended, lengths, ended_after, lengths_after, nodes, depths, path, accepted, last, faults, table,
    size, depth, columns, facts, BN: tl.constexpr, BJ: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    n, j, f = tl.arange(0, BN), tl.arange(0, BJ), tl.arange(0, BF)
    level = tl.load(depths + b * size + n, mask=n < size, other=0)
    length = tl.load(lengths + b)
    took = tl.load(accepted + b)
    table += b * (facts + columns + depth + 1)
    tl.store(table, tl.load(ended + b).to(tl.int64))
    tl.store(table + 1, length)
    tl.store(table + 2, tl.max(level, 0))
    tl.store(table + 3, tl.sum((level > 0).to(tl.int64), 0))
    tl.store(table + 4, tl.load(lengths_after + b) - length)
    tl.store(table + 5, took)
    tl.store(table + 6, tl.load(ended_after + b).to(tl.int64))
    tl.store(table + 7, tl.load(path + b * depth + took - 1, mask=took > 0, other=-1))
    fault = tl.load(faults + b * columns + f, mask=f < columns, other=0)
    tl.store(table + facts + f, fault.to(tl.int64), mask=f < columns)
    token = tl.load(
        nodes + b * size + tl.load(path + b * depth + j, mask=j < took, other=0), mask=j < took, other=0
    )
    token = tl.where(j == took, tl.load(last + b), token)
    tl.store(table + facts + columns + j, token, mask=j <= depth)


def rolled_back(held_BS: Tensor, kept_B: Tensor, tokens_BS: Tensor, lengths_B: Tensor) -> Tensor:
    """int64 [B]: how much of rows is held of all but their last token; see ``Memory.roll_back``.

    Args:
        held_BS, kept_B: tokens that are held, and how many, which is lowered to what is common with the rows.
        tokens_BS, lengths_B: the rows.
    """
    usable_B = torch.empty_like(lengths_B)
    _roll_back[(len(kept_B),)](
        held_BS, kept_B, tokens_BS, lengths_B.contiguous(), usable_B, held_BS.stride(0), *tokens_BS.stride(),
        min(held_BS.shape[1], tokens_BS.shape[1]), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return usable_B


@triton.jit
def _roll_back(
    held, kept, tokens, lengths, usable, held_row, tokens_row, tokens_slot, width, BLOCK: tl.constexpr
):  # fmt: skip
    b = tl.program_id(0)
    length = tl.load(lengths + b)
    limit = tl.minimum(tl.minimum(tl.load(kept + b), length), width)
    common = limit
    start = limit * 0
    while start < common:
        s = start + tl.arange(0, BLOCK)
        inside = s < limit
        mine = tl.load(held + b * held_row + s, mask=inside, other=0)
        theirs = tl.load(tokens + b * tokens_row + s * tokens_slot, mask=inside, other=0)
        common = tl.minimum(common, tl.min(tl.where(inside & (mine != theirs), s, limit), 0))
        start += BLOCK
    tl.store(kept + b, common)
    tl.store(usable + b, tl.minimum(common, length - 1))


def along(position_BW: Tensor, path_BD: Tensor, fed: int) -> tuple[Tensor, Tensor]:
    """int64 [B, P + D] each: which tokens of a forward were committed, and their positions, -1 for padding.

    Args:
        position_BW: of each token.
        path_BD: accepted nodes.
        fed: P.
    """
    rows, depth = path_BD.shape
    told_2BK = path_BD.new_empty(2, rows, fed + depth)
    _along[rows, triton.cdiv(fed + depth, BLOCK)](
        position_BW.contiguous(), path_BD.contiguous(), told_2BK, position_BW.shape[1], fed, depth,
        BLOCK=min(BLOCK, triton.next_power_of_2(fed + depth)), num_warps=1,
    )  # fmt: skip
    which_BK, where_BK = told_2BK.unbind(0)
    return which_BK, where_BK


@triton.jit
def _along(positions, path, told, width, fed, depth, BLOCK: tl.constexpr):
    b = tl.program_id(0)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < fed + depth
    node = tl.load(path + b * depth + k - fed, mask=inside & (k >= fed), other=-1)
    real = inside & ((k < fed) | (node >= 0))
    which = tl.where(k < fed, k, fed + tl.maximum(node, 0))
    place = told + b * (fed + depth) + k
    tl.store(place, which, mask=inside)
    position = tl.load(positions + b * width + which, mask=real, other=-1)
    tl.store(place + tl.num_programs(0) * (fed + depth), position, mask=inside)
