"""A linear layer for a few tokens, bound by the bandwidth at which its weight is read.

M tokens (rows of the input), K input features, N output features.
"""

from __future__ import annotations

import triton
from torch import Tensor
from torch.nn import functional

from specdec.kernels.products import few, many, sliced
from specdec.kernels.tile import Tile, room_on, tile_for

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
    kernel = many if tile.cores else few
    if tile.slices > 1:
        kernel = sliced
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
