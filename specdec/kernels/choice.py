"""Choices among many: the likeliest token, and where the same tokens stood before. One program per row.

B rows, S token slots, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192  # logits of one step
SLOTS = 1024  # tokens of one step


def likeliest(logits: Tensor) -> Tensor:
    """int64 [...]: the first of the highest of ``logits`` [..., V]."""
    size = logits.shape[-1]
    flat_XV = logits.reshape(-1, size)
    chosen = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    if len(flat_XV):
        block = min(BLOCK, triton.next_power_of_2(size))
        _likeliest[(len(flat_XV),)](flat_XV, chosen, *flat_XV.stride(), SIZE=size, BLOCK=block, num_warps=16)
    return chosen


@triton.jit
def _wide(score):
    return score if score.dtype == tl.float64 else score.to(tl.float32)


@triton.jit
def _likeliest(logits, chosen, row, column, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    x = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    best = _wide(tl.load(logits + x * row + v * column, mask=v < SIZE, other=float("-inf")))
    index = v
    for start in range(BLOCK, SIZE, BLOCK):
        here = start + v
        score = _wide(tl.load(logits + x * row + here * column, mask=here < SIZE, other=float("-inf")))
        index = tl.where(score > best, here, index)  # of equal ones the first stays
        best = tl.where(score > best, score, best)
    highest = tl.max(best, 0)
    tl.store(chosen + x, tl.min(tl.where(best == highest, index, SIZE - 1), 0).to(tl.int64))


def latest_match(tokens_BS: Tensor, lengths_B: Tensor, shortest: int, longest: int) -> Tensor:
    """int64 [B]: last slot of the latest earlier occurrence of the longest suffix that has one, -1 for none.

    Args:
        tokens_BS, lengths_B: the rows.
        shortest, longest: tokens of a suffix.
    """
    end_B = torch.empty_like(lengths_B)
    _match[(len(lengths_B),)](
        tokens_BS.contiguous(), lengths_B.contiguous(), end_B, tokens_BS.shape[1], shortest,
        LONGEST=min(longest, tokens_BS.shape[1]), BLOCK=SLOTS, num_warps=8,
    )  # fmt: skip
    return end_B


@triton.jit
def _match(tokens, lengths, ends, slots, shortest, LONGEST: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0)
    tokens += b * slots
    last = tl.load(lengths + b) - 1
    found = last * 0
    start = last * 0
    while start < last:
        s = start + tl.arange(0, BLOCK)
        equal = s < last
        size = s * 0
        for back in tl.static_range(LONGEST):
            mine = tl.load(tokens + s - back, mask=equal & (s >= back), other=-1)
            equal = equal & (s >= back) & (mine == tl.load(tokens + tl.maximum(last - back, 0)))
            size += equal.to(tl.int64)
        # Of the longest the latest; 0 is none.
        found = tl.maximum(found, tl.max(tl.where(size >= shortest, size * slots + s + 1, 0), 0))
        start += BLOCK
    tl.store(ends + b, tl.where(found > 0, (found - 1) % slots, -1))
