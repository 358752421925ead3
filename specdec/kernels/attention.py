"""Attention of a few tokens over a long cache, under a draft tree, in the order of positions.

B rows, W tokens of one forward, H key-value heads, G query heads per key-value head, E head width, S slots,
D depth slots of a tree, C chunks of the cache.

The keys of one row lie in its slots in order of position, but for those of a tree's nodes, which lie behind the
committed ones in the order of the tree. Each token reads them along its own path, so that what it computes
depends on the tokens before it alone: the same bits for a chain, for a tree, and for plain decoding.
The cache is cut into chunks at fixed slots, one program each (flash decoding, Dao et al., 2023); programs
behind a row's end leave at once, so that time goes with the tokens that are there and not with the capacity.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.runtime.sight import Sight

# Most lines (tokens times query heads that share a key-value head) of one program.
MOST_LINES = 64


def attend(
    q_MX: Tensor, keys_BHSE: Tensor, values_BHSE: Tensor, sight: Sight, scale: float, overlap: bool = False
) -> Tensor:
    """Attention over the cache, into which the new keys and values have been written.

    Args:
        q_MX: [B * W, H * G * E], at any stride between tokens.
        keys_BHSE, values_BHSE: the layer's cache.
        scale: of the scores.
        overlap: whether the kernels may start before the last one has ended (see ``linear``). That one may
            still be writing the queries and what the cache gets of this forward's tokens, and nothing else.

    Returns:
        [B * W, H * G * E].
    """
    rows, heads, slots, size = keys_BHSE.shape
    width, groups = sight.counts.shape[1], q_MX.shape[1] // (heads * size)
    wide = max(16, triton.next_power_of_2(size))  # tensor cores take no less
    chunk, block = cut(slots)
    chunks = triton.cdiv(slots, chunk)
    together = min(triton.next_power_of_2(width), max(1, MOST_LINES // triton.next_power_of_2(groups)))
    parts = torch.empty(rows * heads, chunks, width * groups, wide, dtype=torch.float32, device=q_MX.device)
    tops, totals = torch.empty(2, *parts.shape[:3], dtype=torch.float32, device=q_MX.device)
    order, depth, turns = sight.counts, 0, triton.cdiv(width, together)
    if sight.order is not None:
        order, depth, turns = sight.order, sight.order.shape[2], width
    told = [part.contiguous() for part in (sight.lengths, sight.counts, sight.lows, order)]
    shape = {"H": heads, "G": groups, "E": size, "BE": wide, "CHUNK": chunk, "OVERLAP": overlap}
    _chunk[rows * heads, chunks, turns](
        q_MX, keys_BHSE, values_BHSE, *told, parts, tops, totals,
        scale * math.log2(math.e), width, depth, q_MX.stride(0), *keys_BHSE.stride()[:3],
        WIDTH=triton.next_power_of_2(width), TOKENS=together,
        LINES=max(16, together * triton.next_power_of_2(groups)), BLOCK=block,
        TREE=sight.order is not None, PRECISION="ieee", num_warps=4, num_stages=3, launch_pdl=overlap, **shape,
    )  # fmt: skip
    out_MX = torch.empty(q_MX.shape, dtype=q_MX.dtype, device=q_MX.device)
    _combine[rows * width, heads * groups](
        parts, tops, totals, told[1], out_MX, width, CHUNKS=chunks,
        BC=min(16, triton.next_power_of_2(chunks)), num_warps=4, launch_pdl=overlap, **shape,
    )  # fmt: skip
    return out_MX


def cut(slots: int) -> tuple[int, int]:
    """Slots per chunk and per step. More programs for short caches, fewer partial sums for long ones."""
    if slots <= 4096:
        return 64, 64
    return (128, 64) if slots <= 16384 else (256, 64)


def attend_reference(q_MX: Tensor, keys_BHSE: Tensor, values_BHSE: Tensor, sight: Sight, scale: float) -> Tensor:
    """The same in PyTorch, token by token."""
    rows, heads, _, size = keys_BHSE.shape
    width = sight.counts.shape[1]
    q_BWHGE = q_MX.reshape(rows, width, heads, -1, size)
    out_BWHGE = torch.empty_like(q_BWHGE)
    for b in range(rows):
        for w in range(width):
            slots = torch.arange(int(sight.lows[b, w]), int(sight.counts[b, w]), device=q_MX.device)
            if sight.order is not None:
                length = int(sight.lengths[b])
                node = length + sight.order[b, w, (slots - length).clamp(0, sight.order.shape[2] - 1)]
                slots = torch.where(slots < length, slots, node)
            scores = torch.einsum("hge,hse->hgs", q_BWHGE[b, w], keys_BHSE[b][:, slots]).float() * scale
            law = scores.softmax(-1).to(values_BHSE.dtype)
            out_BWHGE[b, w] = torch.einsum("hgs,hse->hge", law, values_BHSE[b][:, slots])
    return out_BWHGE.reshape(q_MX.shape)


@triton.jit
def _chunk(
    q, keys, values, lengths, counts, lows, order, sums, tops, totals, scale,
    width, depth, q_stride, cache_row, cache_head, slot_stride,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, WIDTH: tl.constexpr,
    TOKENS: tl.constexpr, LINES: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, TREE: tl.constexpr,
    OVERLAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One chunk of one row and head: for a group of its tokens, or in a tree's region for one of them.

    What is read before the wait, the keys and values of earlier forwards among it, was there when the kernel
    before began: that one waited too, before it let this one start.
    """
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    c, turn = tl.program_id(1), tl.program_id(2)
    first = turn * TOKENS
    if TREE:
        first = turn // TOKENS * TOKENS
    length = tl.load(lengths + b)
    every = tl.arange(0, WIDTH)
    newest = tl.min(tl.load(counts + b * width + every, mask=every < width, other=1 << 62), 0) - 1
    line = tl.arange(0, LINES)
    g, w = line // TOKENS, first + line % TOKENS
    here = (g < G) & (w < width)
    count = tl.load(counts + b * width + w, mask=here, other=0)
    low = tl.load(lows + b * width + w, mask=here, other=0)
    mine = here
    leads = True
    if TREE:
        shared = (c + 1) * CHUNK <= length
        mine = here & (shared | (w == turn))
        leads = (turn == first) | (not shared)
    most = tl.max(count, 0)
    if leads & (tl.max(tl.where(mine, count, 0), 0) > c * CHUNK):
        e = tl.arange(0, BE)
        base = b.to(tl.int64) * cache_row + h.to(tl.int64) * cache_head
        path = order + (b * width + turn) * depth
        position = c * CHUNK + tl.arange(0, BLOCK)
        place = _places(position, path, length, depth, slot_stride, TREE)
        old = position < newest
        old_k_ES, old_v_SE = _read(keys + base, values + base, place, old & (position < most), e, E)
        if OVERLAP:
            gdc_wait()
        q_LE = tl.load(
            q + ((b * width + w) * q_stride + (h * G + g) * E)[:, None] + e[None, :],
            mask=here[:, None] & (e < E)[None, :], other=0.0,
        )  # fmt: skip
        new_k_ES, new_v_SE = _read(keys + base, values + base, place, (position < most) & ~old, e, E)
        top = tl.full([LINES], float("-inf"), tl.float32)
        total = tl.zeros([LINES], tl.float32)
        sum = tl.zeros([LINES, BE], tl.float32)
        top, total, sum = _fold(
            q_LE, tl.where(old[None, :], old_k_ES, new_k_ES), tl.where(old[:, None], old_v_SE, new_v_SE),
            position, count, low, top, total, sum, scale, PRECISION,
        )  # fmt: skip
        for step in range(BLOCK, CHUNK, BLOCK):
            position = c * CHUNK + step + tl.arange(0, BLOCK)
            place = _places(position, path, length, depth, slot_stride, TREE)
            k_ES, v_SE = _read(keys + base, values + base, place, position < most, e, E)
            top, total, sum = _fold(q_LE, k_ES, v_SE, position, count, low, top, total, sum, scale, PRECISION)
        result = ((tl.program_id(0).to(tl.int64) * tl.num_programs(1) + c) * width + w) * G + g
        tl.store(tops + result, top, mask=mine)
        tl.store(totals + result, total, mask=mine)
        tl.store(sums + result[:, None] * BE + e[None, :], sum, mask=mine[:, None])
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def _places(position, path, length, depth, slot_stride, TREE: tl.constexpr):
    """Where the keys and values of positions lie: those of a tree's nodes are looked up along a path."""
    slot = position
    if TREE:
        beyond = position - length
        inside = (beyond >= 0) & (beyond < depth)
        slot = tl.where(inside, length + tl.load(path + beyond, mask=inside, other=0), position)
    return slot.to(tl.int64) * slot_stride


@triton.jit
def _read(keys, values, place, wanted, e, E: tl.constexpr):
    """Keys with one column and values with one row per place."""
    wide = e < E
    k_ES = tl.load(keys + place[None, :] + e[:, None], mask=wanted[None, :] & wide[:, None], other=0.0)
    v_SE = tl.load(values + place[:, None] + e[None, :], mask=wanted[:, None] & wide[None, :], other=0.0)
    return k_ES, v_SE


@triton.jit
def _fold(q_LE, k_ES, v_SE, position, count, low, top, total, sum, scale, PRECISION: tl.constexpr):
    """Online softmax goes on by one block: highest score, sum of weights, weighted sum of values."""
    seen = (position[None, :] < count[:, None]) & (position[None, :] >= low[:, None])
    score = tl.where(seen, tl.dot(q_LE, k_ES, input_precision=PRECISION) * scale, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    anchor = tl.where(higher == float("-inf"), 0.0, higher)
    part = tl.exp2(score - anchor[:, None])
    fade = tl.exp2(top - anchor)
    total = total * fade + tl.sum(part, 1)
    sum = tl.dot(part.to(v_SE.dtype), v_SE, sum * fade[:, None], input_precision=PRECISION)
    return higher, total, sum


@triton.jit
def _combine(
    sums, tops, totals, counts, out, width,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr, BC: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token and query head: its chunks put together, in order."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    b, w = token // width, token % width
    used = (tl.load(counts + token) + CHUNK - 1) // CHUNK
    if OVERLAP:
        gdc_wait()
    first = ((b.to(tl.int64) * H + head // G) * CHUNKS * width + w) * G + head % G
    e = tl.arange(0, BE)
    top = float("-inf")
    total = 0.0
    sum = tl.zeros([BE], tl.float32)
    for start in tl.static_range(0, CHUNKS, BC):
        if start < used:
            c = start + tl.arange(0, BC)
            there = (c < used) & (c < CHUNKS)
            line = first + c * width * G
            top_C = tl.load(tops + line, mask=there, other=float("-inf"))
            higher = tl.maximum(top, tl.max(top_C, 0))
            anchor = tl.where(higher == float("-inf"), 0.0, higher)
            weight_C = tl.exp2(top_C - anchor)
            fade = tl.exp2(top - anchor)
            total = total * fade + tl.sum(weight_C * tl.load(totals + line, mask=there, other=0.0), 0)
            part_CE = tl.load(sums + line[:, None] * BE + e[None, :], mask=there[:, None], other=0.0)
            sum = sum * fade + tl.sum(part_CE * weight_C[:, None], 0)
            top = higher
    place = token * (H * G * E) + head * E + e
    tl.store(out + place, (sum / total).to(out.dtype.element_ty), mask=e < E)
