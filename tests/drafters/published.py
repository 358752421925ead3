"""The parts of a Llama-like layer as papers write them, for references without a cache."""

from __future__ import annotations

import torch

EPSILON = 1e-6


def normed(x, weight):
    return weight * x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


def heads(x_SX, weight, size, bias=None):
    """[heads, S, size]."""
    projected = x_SX @ weight.T + (0 if bias is None else bias)
    return projected.unflatten(-1, (-1, size)).transpose(0, 1)


def rotated(x_HSE, positions_S, theta=10000.0):
    half = x_HSE.shape[-1] // 2
    turn_SE = positions_S[:, None] * theta ** (-torch.arange(half, dtype=x_HSE.dtype) / half)
    left, right = x_HSE.split(half, -1)
    return torch.cat(
        [left * turn_SE.cos() - right * turn_SE.sin(), right * turn_SE.cos() + left * turn_SE.sin()], -1
    )


def attended(q_HWE, k_HSE, v_HSE, seen_WS):
    """[W, heads * E]: every query over the keys that it sees."""
    groups = len(q_HWE) // len(k_HSE)
    k_HSE, v_HSE = k_HSE.repeat_interleave(groups, 0), v_HSE.repeat_interleave(groups, 0)
    scores = (q_HWE @ k_HSE.transpose(1, 2)) / q_HWE.shape[-1] ** 0.5
    return (scores.masked_fill(~seen_WS, -torch.inf).softmax(-1) @ v_HSE).transpose(0, 1).flatten(1)


def triangle(size):
    return torch.ones(size, size, dtype=torch.bool).tril()


def mlp(x_SX, part, prefix):
    gate, up = x_SX @ part[f"{prefix}gate_proj.weight"].T, x_SX @ part[f"{prefix}up_proj.weight"].T
    return (gate * gate.sigmoid() * up) @ part[f"{prefix}down_proj.weight"].T


@torch.no_grad()
def jittered(module, amount=0.2, seed=3):
    """Fresh weights are too small to tell one mistake from another."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.add_(amount * torch.randn(weight.shape, generator=generator))
    return module
