"""Does a layer of packed weights compute what the module's own does? In float32, where rounding hides nothing.

W tokens, half of them at the first positions and half at the last, E head width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from specdec.kernels.attention import attend_reference
from specdec.kernels.linear import linear_reference
from specdec.kernels.rotary import rotate_reference
from specdec.runtime.huggingface_views import layer_list, with_layers
from specdec.runtime.lean import Kernels, LeanLayer, LeanNetwork
from specdec.runtime.readout import Stand
from specdec.runtime.sight import Sight

TOKENS = 32
REFERENCE = Kernels(
    linear=lambda *what, overlap, **options: linear_reference(*what, **options),
    rotate=lambda *what, overlap: rotate_reference(*what),
    attend=lambda *what, overlap: attend_reference(*what),
)


@torch.no_grad()
def likeness(module: Any, network: LeanNetwork) -> float:
    """The largest gap of any layer: how far its outputs lie apart, relative to what it adds to its input.

    What shows in no name is found here: layers that do not rotate, rotation by other pairs, another activation,
    queries that are scaled by position.
    """
    base, device = module.get_decoder(), network.embed.device
    x_1WX = scattered(1, TOKENS, network.embed.shape[1]).to(device)
    index_W = torch.arange(TOKENS, device=device)
    late_W = index_W + len(network.cosines) - TOKENS
    positions_1W = torch.where(index_W < TOKENS // 2, index_W, late_W.clamp(min=0))[None]
    tables = base.rotary_emb(x_1WX, positions_1W)
    exact = replace(network, cosines=tables[0][0], sines=tables[1][0], kernels=REFERENCE, overlap=False)
    worst = 0.0
    for layer, lean in zip(base.layers, network.layers, strict=True):
        theirs_1WX = by_module(layer, x_1WX, positions_1W, tables, lean.sliding)
        ours_WX = by_weights(exact, lean, x_1WX[0])
        gap = float((ours_WX - theirs_1WX[0]).norm() / (theirs_1WX - x_1WX).norm())
        worst = gap if not gap <= worst else worst  # what is no number counts
    return worst


@torch.no_grad()
def ends_likeness(module: Any, network: LeanNetwork) -> float:
    """The larger gap of two: what goes into the first layer, and the logits of a state behind the last.

    Found here: embeddings or logits that are scaled, capped or shifted, another final norm.
    """
    state_1WX = scattered(1, TOKENS, network.embed.shape[1]).to(network.embed.device)
    tokens_1W = torch.arange(TOKENS, device=state_1WX.device)[None] % len(network.embed)
    between = Between(state_1WX, module.get_decoder().layers[0])
    name, _ = layer_list(module, len(module.get_decoder().layers))
    view = with_layers(module, name, [between])
    base, head = view.get_decoder(), copy.deepcopy(module.get_output_embeddings()).float()
    base.norm = copy.deepcopy(base.norm).float()
    view.set_output_embeddings(head)
    theirs_WV = view(input_ids=tokens_1W, use_cache=False).logits[0]
    ours_WV = linear_reference(
        state_1WX[0], network.head.float(), gain=network.norm.float(), epsilon=network.epsilon
    )
    embedded_WX = network.embed[tokens_1W[0]]
    entering = float((between.entered[0] - embedded_WX).float().norm() / embedded_WX.float().norm())
    leaving = float((ours_WV - theirs_WV).norm() / theirs_WV.norm())
    return max(entering, leaving) if leaving == leaving else leaving


class Between(Stand):
    """In place of all layers; notes what goes in."""

    def __init__(self, state_1WX: Tensor, layer: nn.Module) -> None:
        super().__init__(layer, state_1WX, tuples=False)

    def forward(self, hidden_states: Tensor, *others: Any, **options: Any) -> Any:
        """The state, whatever went in."""
        self.entered = hidden_states
        return super().forward()


def scattered(*shape: int) -> Tensor:
    """Numbers without a pattern, of mean 0 and variance 1, the same every time."""
    digits = torch.arange(math.prod(shape), dtype=torch.float64).sin() * 1e4 % 1
    return ((digits - 0.5) * math.sqrt(12)).float().reshape(shape)


def by_module(
    layer: Any, x_1WX: Tensor, positions_1W: Tensor, tables: tuple[Tensor, Tensor], sliding: int | None
) -> Tensor:
    """[1, W, hidden], by a copy of the module's layer."""
    exact = copy.deepcopy(layer).float()
    exact.self_attn.config._attn_implementation = "sdpa"
    index_W = torch.arange(TOKENS, device=x_1WX.device)
    back_WW = index_W[:, None] - index_W
    mask_WW = (back_WW >= 0) & (back_WW < (sliding or TOKENS))
    answer = exact(
        x_1WX, attention_mask=mask_WW[None, None], position_ids=positions_1W, position_embeddings=tables
    )
    return answer[0] if isinstance(answer, tuple) else answer


def by_weights(network: LeanNetwork, lean: LeanLayer, x_WX: Tensor) -> Tensor:
    """[W, hidden], by the packed weights."""
    weights = {part.name: getattr(lean, part.name) for part in fields(lean)}
    upcast: dict[str, Any] = {name: part.float() for name, part in weights.items() if isinstance(part, Tensor)}
    exact = replace(lean, **upcast)
    index_1W = torch.arange(TOKENS, device=x_WX.device)[None]
    size = network.cosines.shape[1]
    heads = (exact.qkv.shape[0] - exact.out.shape[1]) // (2 * size)
    empty = x_WX.new_zeros(2, 1, heads, TOKENS + 1, size)
    sight = Sight(index_1W.new_full((1,), TOKENS), index_1W + 1, torch.zeros_like(index_1W), None)
    return network.layer(exact, x_WX, x_WX, index_1W, index_1W, (empty[0], empty[1]), sight.within(exact.sliding))
