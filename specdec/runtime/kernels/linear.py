"""A linear layer for a few tokens, bound by the bandwidth at which its weight is read.

M tokens (rows of the input), K input features, N output features.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from specdec.runtime.kernels.tile import Tile, room_on, tile_for

WIDEST = 64  # tokens of one call; more are bound by arithmetic, and libraries do it better


def linear(
    x_MK: Tensor, weight: Tensor, *, gain: Tensor | None = None, epsilon: float = 0.0, bias: Tensor | None = None,
    residual_MN: Tensor | None = None, gated: bool = False, overlap: bool = False, tile: Tile | None = None,
) -> Tensor:  # fmt: skip
    """``rms_norm(x) @ weight.T + bias + residual`` in one kernel for up to ``WIDEST`` tokens.

    Each output is summed over the inputs in one order for one tile, whatever M is up to 16: as long as the tile
    stays, a token's bits do not depend on how many others go with it.

    Args:
        x_MK: [M, K].
        weight: [N, K], or [2N, K] with gate and up projection one after the other.
        gain: [K], weight of an RMS norm of the input (Zhang and Sennrich, arXiv 1910.07467), None without one.
        epsilon: of the norm.
        bias: [N].
        residual_MN: [M, N], added.
        gated: ``silu(gate) * up`` (Shazeer, arXiv 2002.05202).
        overlap: whether the kernel may start before the last one has ended (programmatic dependent launch).
            It waits for it before it reads anything; the kernel before must have waited too.
        tile: how to cut the weight, chosen by shape if None.

    Returns:
        [M, N].
    """
    x_MK = x_MK.contiguous()
    tokens, inputs = x_MK.shape
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if tokens > WIDEST:
        return by_library(x_MK, weight, gain, epsilon, bias, residual_MN, gated)
    tile = tile or tile_for(tokens, outputs, inputs, gated, weight.element_size(), room_on(weight.device))
    out_MN = x_MK.new_empty(tokens, outputs)
    parts = (x_MK if part is None else part for part in (gain, bias, residual_MN))
    options: dict[str, object] = {
        "inputs": inputs, "BN": tile.outputs, "BK": tile.inputs, "NORM": gain is not None, "GATED": gated,
        "BIAS": bias is not None, "RESIDUAL": residual_MN is not None, "OVERLAP": overlap,
        "num_warps": tile.warps, "num_stages": tile.stages, "launch_pdl": overlap,
    }  # fmt: skip
    together = triton.next_power_of_2(tokens)
    kernel = _many if tile.cores else _few
    if tile.slices > 1:
        kernel = _sliced
        options |= {"BM": max(8, together), "PRECISION": "ieee", "SLICES": tile.slices}
    elif tile.cores:
        options |= {"BM": max(16, together), "PRECISION": "ieee"}
    else:
        options |= {"BM": together}
    kernel[(triton.cdiv(outputs, tile.outputs),)](
        x_MK, weight, *parts, out_MN, tokens, outputs, epsilon, **options
    )
    return out_MN


def by_library(
    x_MK: Tensor, weight: Tensor, gain: Tensor | None, epsilon: float, bias: Tensor | None,
    residual_MN: Tensor | None, gated: bool,
) -> Tensor:  # fmt: skip
    """For many tokens: products of large matrices are a library's business."""
    normed_MK = x_MK if gain is None else functional.rms_norm(x_MK, x_MK.shape[1:], gain, epsilon)
    out_MN = functional.linear(normed_MK, weight, bias)
    if gated:
        gate_MN, up_MN = out_MN.chunk(2, 1)
        out_MN = functional.silu(gate_MN) * up_MN
    return out_MN if residual_MN is None else out_MN + residual_MN


def linear_reference(
    x_MK: Tensor, weight: Tensor, *, gain: Tensor | None = None, epsilon: float = 0.0, bias: Tensor | None = None,
    residual_MN: Tensor | None = None, gated: bool = False,
) -> Tensor:  # fmt: skip
    """The same in PyTorch."""
    normed = x_MK if gain is None else functional.rms_norm(x_MK.float(), x_MK.shape[1:], gain.float(), epsilon)
    out_MN = functional.linear(normed.float(), weight.float())
    if gated:
        gate_MN, up_MN = out_MN.chunk(2, 1)
        out_MN = functional.silu(gate_MN) * up_MN
    for part in (bias, residual_MN):
        if part is not None:
            out_MN = out_MN + part.float()
    return out_MN.to(x_MK.dtype)


@triton.jit
def _few(
    x, weight, gain, bias, residual, out, tokens, outputs, epsilon,
    inputs: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Products and sums lane by lane: no tensor core to feed, so that small programs can be many."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    row, column = n[:, None] < outputs, m[:, None] < tokens
    weights = weight + n[:, None].to(tl.int64) * inputs + k[None, :]
    if OVERLAP:
        gdc_wait()
    sum = tl.zeros([BM, BN, BK], tl.float32)
    up = tl.zeros([BM, BN, BK], tl.float32)
    squares = tl.zeros([BM, BK], tl.float32)
    for start in range(0, inputs, BK):
        inside = start + k < inputs
        w = tl.load(weights + start, mask=row & inside[None, :], other=0.0, eviction_policy="evict_first")
        if GATED:
            v = tl.load(
                weights + outputs.to(tl.int64) * inputs + start,
                mask=row & inside[None, :], other=0.0, eviction_policy="evict_first",
            )  # fmt: skip
        x_MK = tl.load(x + m[:, None] * inputs + (start + k)[None, :], mask=column & inside[None, :], other=0.0)
        x_MK = x_MK.to(tl.float32)
        if NORM:
            squares += x_MK * x_MK
            x_MK *= tl.load(gain + start + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        sum += w.to(tl.float32)[None, :, :] * x_MK[:, None, :]
        if GATED:
            up += v.to(tl.float32)[None, :, :] * x_MK[:, None, :]
    if OVERLAP:
        gdc_launch_dependents()
    size = tl.zeros([BM], tl.float32)
    if NORM:
        size = 1 / tl.sqrt(tl.sum(squares, 1) / inputs + epsilon)
    place = m[:, None] * outputs + n[None, :]
    kept = column & (n < outputs)[None, :]
    _end(
        tl.sum(sum, 2), tl.sum(up, 2), size[:, None], bias + n[None, :], residual + place, out + place, kept,
        NORM, GATED, BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _many(
    x, weight, gain, bias, residual, out, tokens, outputs, epsilon,
    inputs: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, OVERLAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of tiles on tensor cores."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    row = n[:, None] < outputs
    column = m[None, :] < tokens
    weights = weight + n[:, None].to(tl.int64) * inputs + k[None, :]
    ups = weights + outputs.to(tl.int64) * inputs
    if OVERLAP:
        gdc_wait()
    sum = tl.zeros([BN, BM], tl.float32)
    up = tl.zeros([BN, BM], tl.float32)
    squares = tl.zeros([BK, BM], tl.float32)
    for start in range(0, inputs, BK):
        inside = start + k < inputs
        w = tl.load(weights + start, mask=row & inside[None, :], other=0.0, eviction_policy="evict_first")
        x_KM = tl.load(x + m[None, :] * inputs + start + k[:, None], mask=column & inside[:, None], other=0.0)
        if NORM:
            wide = x_KM.to(tl.float32)
            squares += wide * wide  # added up behind the loop: there, programs need not wait for each lane
            scale = tl.load(gain + start + k, mask=inside, other=0.0).to(tl.float32)
            x_KM = (wide * scale[:, None]).to(w.dtype)
        sum = tl.dot(w, x_KM, sum, input_precision=PRECISION)
        if GATED:
            v = tl.load(ups + start, mask=row & inside[None, :], other=0.0, eviction_policy="evict_first")
            up = tl.dot(v, x_KM, up, input_precision=PRECISION)
    if OVERLAP:
        gdc_launch_dependents()
    size = tl.zeros([BM], tl.float32)
    if NORM:
        size = 1 / tl.sqrt(tl.sum(squares, 0) / inputs + epsilon)
    place = m[None, :] * outputs + n[:, None]
    _end(
        sum, up, size[None, :], bias + n[:, None], residual + place, out + place, row & column,
        NORM, GATED, BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _sliced(
    x, weight, gain, bias, residual, out, tokens, outputs, epsilon,
    inputs: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, OVERLAP: tl.constexpr,
    PRECISION: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Products on tensor cores, every warp with a slice of the inputs and sums of its own.

    Few tokens fill a core's tile only once, and each product waits for the last one on the same sum: with all
    inputs in one line that is what a small weight takes its time for.
    """
    SIZE: tl.constexpr = BK // SLICES
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, SLICES)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    row = (n < outputs)[None, :, None]
    column = (m < tokens)[None, None, :]
    weights = weight + n[None, :, None].to(tl.int64) * inputs + k[:, None, :]
    ups = weights + outputs.to(tl.int64) * inputs
    if OVERLAP:
        gdc_wait()
    sum = tl.zeros([SLICES, BN, BM], tl.float32)
    up = tl.zeros([SLICES, BN, BM], tl.float32)
    squares = tl.zeros([SLICES, SIZE, BM], tl.float32)
    for start in range(0, inputs, BK):
        inside = start + k < inputs
        wanted = row & inside[:, None, :]
        w = tl.load(weights + start, mask=wanted, other=0.0, eviction_policy="evict_first")
        x_SKM = tl.load(
            x + m[None, None, :] * inputs + (start + k)[:, :, None], mask=column & inside[:, :, None], other=0.0
        )
        if NORM:
            wide = x_SKM.to(tl.float32)
            squares += wide * wide
            scale = tl.load(gain + start + k, mask=inside, other=0.0).to(tl.float32)
            x_SKM = (wide * scale[:, :, None]).to(w.dtype)
        sum = tl.dot(w, x_SKM, sum, input_precision=PRECISION)
        if GATED:
            v = tl.load(ups + start, mask=wanted, other=0.0, eviction_policy="evict_first")
            up = tl.dot(v, x_SKM, up, input_precision=PRECISION)
    if OVERLAP:
        gdc_launch_dependents()
    size = tl.zeros([BM], tl.float32)
    if NORM:
        size = 1 / tl.sqrt(tl.sum(tl.sum(squares, 1), 0) / inputs + epsilon)
    place = m[None, :] * outputs + n[:, None]
    kept = (n < outputs)[:, None] & (m < tokens)[None, :]
    _end(
        tl.sum(sum, 0), tl.sum(up, 0), size[None, :], bias + n[:, None], residual + place, out + place, kept,
        NORM, GATED, BIAS, RESIDUAL,
    )  # fmt: skip


@triton.jit
def _end(
    sum, up, size, bias, residual, out, kept,
    NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What becomes of the sums: norm, gate, bias, residual, and their place."""
    if NORM:
        sum *= size
        up *= size
    if GATED:
        sum = sum * tl.sigmoid(sum) * up
    if BIAS:
        sum += tl.load(bias, mask=kept, other=0.0).to(tl.float32)
    if RESIDUAL:
        sum += tl.load(residual, mask=kept, other=0.0).to(tl.float32)
    tl.store(out, sum.to(out.dtype.element_ty), mask=kept)
