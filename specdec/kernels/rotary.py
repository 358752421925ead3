"""What happens to queries, keys and values between their projection and attention, in one go.

B rows, W tokens of one forward, Q query heads, H key-value heads, E head width, S slots.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _rotary(
    qkv, cosines, sines, positions, slots, gains, q, keys, values, epsilon, width,
    trash, cache_row, cache_head, slot_stride,
    Q: tl.constexpr, H: tl.constexpr, E: tl.constexpr, BE: tl.constexpr, NORM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token and head: norm, rotation, and its place in the cache (or among the queries)."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0)
    head = tl.program_id(1)
    e = tl.arange(0, BE)
    wide = e < E
    line = qkv + token * (Q + 2 * H) * E + head * E
    x = tl.load(line + e, mask=wide, other=0.0).to(tl.float32)
    b = token // width
    slot = tl.load(slots + token).to(tl.int64)
    place = b.to(tl.int64) * cache_row + tl.where(slot < 0, trash, slot) * slot_stride
    if head >= Q + H:
        tl.store(values + place + (head - Q - H) * cache_head + e, x.to(values.dtype.element_ty), mask=wide)
    else:
        half = tl.where(e < E // 2, e + E // 2, e - E // 2)
        other = tl.load(line + half, mask=wide, other=0.0).to(tl.float32)
        if NORM:
            size = 1 / tl.sqrt(tl.sum(x * x, 0) / E + epsilon)
            gain = gains + (head >= Q).to(tl.int32) * E
            x = x * size * tl.load(gain + e, mask=wide, other=0.0)
            other = other * size * tl.load(gain + half, mask=wide, other=0.0)
        angle = tl.load(positions + token) * E + e
        turned = tl.where(e < E // 2, -other, other)
        x = x * tl.load(cosines + angle, mask=wide, other=0.0) + turned * tl.load(
            sines + angle, mask=wide, other=0.0
        )
        if head < Q:
            tl.store(q + token * Q * E + head * E + e, x.to(q.dtype.element_ty), mask=wide)
        else:
            tl.store(keys + place + (head - Q) * cache_head + e, x.to(keys.dtype.element_ty), mask=wide)


def rotate(
    qkv_MX: Tensor, cosines_SE: Tensor, sines_SE: Tensor, positions_BW: Tensor, slots_BW: Tensor,
    gains_2E: Tensor | None, epsilon: float, keys_BHSE: Tensor, values_BHSE: Tensor, overlap: bool,
) -> Tensor:  # fmt: skip
    """Queries, keys and values of one layer's new tokens: norm of each head, rotation, and the way into the cache.

    Args:
        qkv_MX: [B * W, (Q + 2H) * E], queries, then keys, then values, as projected.
        cosines_SE, sines_SE: [positions, E], rotary tables (Su et al., arXiv 2104.09864).
        positions_BW, slots_BW: int64 [B, W]; a slot of -1 is the last one.
        gains_2E: RMS norm weights of query and key heads, None without such norms.
        epsilon: of the norms.
        keys_BHSE, values_BHSE: the layer's cache, written.
        overlap: whether the kernel may start before the last one has ended (see ``linear``).

    Returns:
        The queries, [B * W, Q * E].
    """
    rows, heads, slots, size = keys_BHSE.shape
    tokens, queries = len(qkv_MX), qkv_MX.shape[1] // size - 2 * heads
    q_MX = qkv_MX.new_empty(tokens, queries * size)
    qkv_MX, positions_BW, slots_BW = qkv_MX.contiguous(), positions_BW.contiguous(), slots_BW.contiguous()
    _rotary[tokens, queries + 2 * heads](
        qkv_MX, cosines_SE, sines_SE, positions_BW, slots_BW, qkv_MX if gains_2E is None else gains_2E, q_MX,
        keys_BHSE, values_BHSE, epsilon, tokens // rows, slots - 1, *keys_BHSE.stride()[:3],
        Q=queries, H=heads, E=size, BE=triton.next_power_of_2(size), NORM=gains_2E is not None, OVERLAP=overlap,
        num_warps=1, launch_pdl=overlap,
    )  # fmt: skip
    return q_MX


def rotate_reference(
    qkv_MX: Tensor, cosines_SE: Tensor, sines_SE: Tensor, positions_BW: Tensor, slots_BW: Tensor,
    gains_2E: Tensor | None, epsilon: float, keys_BHSE: Tensor, values_BHSE: Tensor,
) -> Tensor:  # fmt: skip
    """The same in PyTorch."""
    rows, heads, _, size = keys_BHSE.shape
    width = positions_BW.shape[1]
    x_BWQE = qkv_MX.unflatten(-1, (-1, size)).unflatten(0, (rows, width))
    queries, keys, values = x_BWQE.split([x_BWQE.shape[2] - 2 * heads, heads, heads], 2)
    turned = []
    for index, part in enumerate((queries, keys)):
        if gains_2E is not None:
            part = functional.rms_norm(part.float(), (size,), gains_2E[index].float(), epsilon)
        half = torch.cat([-part[..., size // 2 :], part[..., : size // 2]], -1)
        cosine, sine = cosines_SE[positions_BW][:, :, None], sines_SE[positions_BW][:, :, None]
        turned.append((part.float() * cosine + half * sine).to(qkv_MX.dtype))
    row_B1 = torch.arange(rows, device=qkv_MX.device)[:, None]
    keys_BHSE[row_B1, :, slots_BW] = turned[1]
    values_BHSE[row_B1, :, slots_BW] = values
    return turned[0].reshape(rows * width, -1)
