"""Products of a few tokens with a weight, in one kernel each; see ``linear``.

M tokens, K input features, N output features, S slices of the inputs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def few(
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
def many(
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
def sliced(
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
