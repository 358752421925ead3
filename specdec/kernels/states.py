"""Rows of states: where a draft head finds them, where it puts them, and the slots that an accepted path moves to.

B rows, W tokens of one forward, K places, X hidden size, D depth slots, L layers, H key-value heads, E head width.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def features(
    given_BSX: Tensor, made_BSX: Tensor, slots_BW: Tensor, lengths_B: Tensor, parents_BN: Tensor
) -> Tensor:  # fmt: skip
    """[B, W, X]: of a committed token's slot what was given, of a node's what was made of the node above it.

    Args:
        given_BSX, made_BSX: by slot.
        slots_BW: int64, -1 for padding.
        lengths_B: int64 [B]; node n lies in slot ``lengths + n``.
        parents_BN: int64.
    """
    (rows, width), size = slots_BW.shape, given_BSX.shape[2]
    out_BWX = given_BSX.new_empty(rows, width, size)
    _features[(rows * width,)](
        given_BSX, made_BSX, slots_BW.contiguous(), lengths_B.contiguous(), parents_BN.contiguous(), out_BWX,
        width, parents_BN.shape[1], size, given_BSX.stride(0), made_BSX.stride(0), BX=triton.next_power_of_2(size),
    )  # fmt: skip
    return out_BWX


@triton.jit
def _features(
    given, made, slots, lengths, parents, out, width, nodes, size, given_row, made_row, BX: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0)
    b = token // width
    x = tl.arange(0, BX)
    length = tl.load(lengths + b)
    slot = tl.load(slots + token)
    node = slot - length
    if node >= 0:
        above = tl.load(parents + b * nodes + tl.minimum(node, nodes - 1), mask=nodes > 0, other=-1)
        place = tl.maximum(length + tl.maximum(above, -1), 0)
        state = tl.load(made + b.to(tl.int64) * made_row + place * size + x, mask=x < size, other=0.0)
    else:
        place = tl.maximum(slot, 0)
        state = tl.load(given + b.to(tl.int64) * given_row + place * size + x, mask=x < size, other=0.0)
    tl.store(out + token.to(tl.int64) * size + x, state, mask=x < size)


def put(table_BSX: Tensor, places_BK: Tensor, states_BKX: Tensor, lowest_B: Tensor | None = None) -> None:
    """Write states to their places in a table; those at -1 are left out.

    Args:
        table_BSX: written.
        places_BK: int64.
        states_BKX: of any type.
        lowest_B: int64 [B], lowered to the lowest place of a row.
    """
    rows, count, size = states_BKX.shape
    _put[(rows * count,)](
        table_BSX, places_BK.contiguous(), states_BKX.contiguous(), places_BK if lowest_B is None else lowest_B,
        count, size, table_BSX.stride(0), BX=triton.next_power_of_2(size), LOWER=lowest_B is not None,
    )  # fmt: skip


@triton.jit
def _put(table, places, states, lowest, count, size, row, BX: tl.constexpr, LOWER: tl.constexpr):
    token = tl.program_id(0)
    b = token // count
    x = tl.arange(0, BX)
    place = tl.load(places + token)
    if place >= 0:
        state = tl.load(states + token.to(tl.int64) * size + x, mask=x < size, other=0.0)
        line = table + b.to(tl.int64) * row + place * size + x
        tl.store(line, state.to(table.dtype.element_ty), mask=x < size)
        if LOWER:
            tl.atomic_min(lowest + b, place)


def normed_pairs(left_MX: Tensor, right_MX: Tensor, gains: tuple[Tensor, Tensor], epsilon: float) -> Tensor:
    """[M, 2X]: both behind RMS norms of their own, side by side.

    Args:
        left_MX, right_MX: two states of each token.
        gains: [X] each.
        epsilon: of both norms.
    """
    tokens, size = left_MX.shape
    out_MY = right_MX.new_empty(tokens, 2 * size)
    _normed_pair[tokens, 2](
        left_MX.contiguous(), right_MX.contiguous(), *gains, out_MY, size, epsilon, BX=triton.next_power_of_2(size)
    )
    return out_MY


@triton.jit
def _normed_pair(left, right, left_gain, right_gain, out, size, epsilon, BX: tl.constexpr):
    m, side = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x = tl.arange(0, BX)
    inside = x < size
    if side == 0:
        state = tl.load(left + m * size + x, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(left_gain + x, mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.load(right + m * size + x, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(right_gain + x, mask=inside, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(state * state, 0) / size + epsilon)
    tl.store(out + (2 * m + side) * size + x, (state * scale * gain).to(out.dtype.element_ty), mask=inside)


def moved(addresses_L: Tensor, like_BHSE: Tensor, source_BD: Tensor, target_BD: Tensor) -> None:
    """Copy slots of all layers; of each row all are read before any is written.

    Args:
        addresses_L: int64, where the buffers lie, which are all of one shape and type.
        like_BHSE: one of them.
        source_BD, target_BD: int64 slots; where both are equal nothing is done.
    """
    rows, heads, slots, size = like_BHSE.shape
    depth = source_BD.shape[1]
    _move[rows * heads, len(addresses_L)](
        addresses_L, like_BHSE, source_BD.contiguous(), target_BD.contiguous(), depth, heads, slots, size,
        BD=triton.next_power_of_2(depth), BE=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip


@triton.jit
def _move(addresses, like, source, target, depth, heads, slots, size, BD: tl.constexpr, BE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    d, e = tl.arange(0, BD), tl.arange(0, BE)
    at = place // heads * depth + d
    start = tl.load(source + at, mask=d < depth, other=0)
    goal = tl.load(target + at, mask=d < depth, other=0)
    wanted = (start != goal)[:, None] & (e < size)[None, :]
    buffer = tl.load(addresses + tl.program_id(1)).to(tl.pointer_type(like.dtype.element_ty))
    buffer += place * slots * size + e[None, :]
    state = tl.load(buffer + start[:, None] * size, mask=wanted, other=0.0)
    tl.debug_barrier()  # else a thread could write what another has not read yet
    tl.store(buffer + goal[:, None] * size, state, mask=wanted)
