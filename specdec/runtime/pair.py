"""The layer of an EAGLE-3 head in the kernels of a lean network, with the norm and the LM head behind it.

B rows, W tokens of one forward, M = B * W, X hidden size, D draft vocabulary.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from specdec.runtime.attention import Window
from specdec.runtime.fuse import PROBE, ROTARY, lean_layer, tolerance
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import PairLayer, Rotary
from specdec.runtime.lean import LeanNetwork
from specdec.runtime.sight import Sight

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeanPair:
    """A ``PairLayer`` of packed weights: ten kernels, where its modules launch more than forty.

    Attributes:
        network: its attention and MLP as the only layer, the head's norm and LM head.
        token_norm, state_norm: [X], norms of the two that are read side by side.
    """

    network: LeanNetwork
    token_norm: Tensor
    state_norm: Tensor

    def __call__(self, embedded_BWX: Tensor, states_BWX: Tensor, positions_BW: Tensor, window: Window) -> Tensor:
        """[B, W, X] behind the layer, before any norm. Keys and values go to the window's cache."""
        window.written.add(0)
        cache = window.cache.keys[0], window.cache.values[0]
        return self.over(embedded_BWX, states_BWX, positions_BW, window.slots, cache, window.sight)

    def over(
        self,
        embedded_BWX: Tensor,
        states_BWX: Tensor,
        positions_BW: Tensor,
        slots_BW: Tensor,
        cache: tuple[Tensor, Tensor],
        sight: Sight | None,
    ) -> Tensor:
        """The same over keys and values of some other place. Raises ValueError without a sight."""
        if sight is None:
            raise ValueError("our attention needs to be told what is seen in few words")
        network, size = self.network, states_BWX.shape[-1:]
        token_BWX = rms_norm(embedded_BWX, size, self.token_norm, network.epsilon)
        state_BWX = rms_norm(states_BWX, size, self.state_norm, network.epsilon)
        pair_MX = torch.cat([token_BWX, state_BWX], -1).flatten(0, 1)
        # Beyond the table lies only what can never be committed.
        positions_BW = positions_BW.clamp(max=len(network.cosines) - 1)
        (layer,), stream_MX = network.layers, states_BWX.flatten(0, 1)
        own_MX = network.layer(layer, pair_MX, stream_MX, positions_BW, slots_BW, cache, sight)
        return own_MX.unflatten(0, states_BWX.shape[:2])

    def read_out(self, own_BWX: Tensor) -> Tensor:
        """Logits [B, W, D] of what it made."""
        return self.network.read_out(own_BWX)


def lean_pair(
    layer: PairLayer, norm: nn.RMSNorm, head: nn.Linear, rotary: Rotary, target: Network
) -> LeanPair | None:
    """A layer in fused kernels; None where the target runs without them, or the answer is another one."""
    if target.lean is None or layer.norm_before_residual or rotary.rope_type not in ROTARY:
        return None
    try:
        made = packed_pair(layer, norm, head, rotary, target, target.lean)
        gap = distance(made, layer, rotary)
    except Exception as error:  # whatever a compiler makes of shapes that it has not met
        log.warning("the draft head is not run by the fused kernels: %s", error, exc_info=error)
        return None
    if not gap <= tolerance(target.dtype):  # nor is anything that is no number
        log.warning("the draft head is not run by the fused kernels: its layer's answer differs by %.2g", gap)
        return None
    return made


@torch.inference_mode(False)  # the weights may learn again
@torch.no_grad()
def packed_pair(
    layer: PairLayer, norm: nn.RMSNorm, head: nn.Linear, rotary: Rotary, target: Network, lean: LeanNetwork
) -> LeanPair:
    """The weights, packed in place as a target's are."""
    longest = max(rotary.max_seq_len_cached, target.max_positions or 0)
    where_1S = torch.arange(longest, device=head.weight.device)[None]
    cosines, sines = (table[0].contiguous() for table in rotary(head.weight[:1, None], where_1S))
    network = replace(
        lean,
        layers=(replace(lean_layer(layer, 0), norm=None),),
        norm=norm.weight.data,
        head=head.weight.data,
        cosines=cosines,
        sines=sines,
        epsilon=layer.hidden_norm.eps or 0.0,
        scale=float(layer.self_attn.scaling),
    )
    return LeanPair(network, layer.input_layernorm.weight.data, layer.hidden_norm.weight.data)


@torch.no_grad()
def distance(made: LeanPair, layer: PairLayer, rotary: Rotary) -> float:
    """How far what it adds to a few states is from what the modules add, relative to its size."""
    weight, heads = made.network.head, layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
    numbers = torch.arange(2 * PROBE * weight.shape[1], device=weight.device, dtype=torch.float64).sin() * 1e4 % 1
    embedded_1WX, states_1WX = (numbers.to(weight.dtype) - 0.5).view(2, 1, PROBE, -1).unbind()
    where_1W = torch.arange(PROBE, device=weight.device)[None]
    theirs_1WX = layer(embedded_1WX, states_1WX, rotary(states_1WX, where_1W))
    empty = weight.new_zeros(2, 1, heads, PROBE + 1, layer.self_attn.head_dim)
    sight = Sight(where_1W.new_full((1,), PROBE), where_1W + 1, torch.zeros_like(where_1W), None)
    ours_1WX = made.over(embedded_1WX, states_1WX, where_1W, where_1W, (empty[0], empty[1]), sight)
    return float((ours_1WX - theirs_1WX).float().norm() / (theirs_1WX - states_1WX).float().norm())
