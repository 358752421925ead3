"""The layer of an EAGLE-3 head in the kernels of a lean network, with the norm and the LM head behind it.

B rows, W tokens of one forward, M = B * W, X hidden size, D draft vocabulary.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from specdec.kernels import here
from specdec.runtime.attention import Window
from specdec.runtime.fuse import PROBE, ROTARY, STRICT, tolerance
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import PairLayer, Rotary
from specdec.runtime.lean import LeanLayer, LeanNetwork
from specdec.runtime.likeness import REFERENCE, scattered
from specdec.runtime.sight import Sight

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeanPair:
    """A ``PairLayer`` of packed weights: nine kernels, where its modules launch more than forty.

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
        (cache,) = self.network.caches(window.cache)
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
        network, stream_MX = self.network, states_BWX.flatten(0, 1)
        pair_MX = self._normed(embedded_BWX.flatten(0, 1), stream_MX)
        # Beyond the table lies only what can never be committed.
        positions_BW = positions_BW.clamp(max=len(network.cosines) - 1)
        own_MX = network.layer(network.layers[0], pair_MX, stream_MX, positions_BW, slots_BW, cache, sight)
        return own_MX.unflatten(0, states_BWX.shape[:2])

    def _normed(self, embedded_MX: Tensor, state_MX: Tensor) -> Tensor:
        """[M, 2X]: both behind their norms."""
        gains, epsilon = (self.token_norm, self.state_norm), self.network.epsilon
        if self.network.kernels is not REFERENCE and here(state_MX):
            from specdec.kernels.states import normed_pairs

            return normed_pairs(embedded_MX, state_MX, gains, epsilon)
        parts = zip((embedded_MX, state_MX), gains, strict=True)
        return torch.cat([rms_norm(part_MX, gain.shape, gain, epsilon) for part_MX, gain in parts], -1)

    def read_out(self, own_BWX: Tensor) -> Tensor:
        """Logits [B, W, D] of what it made."""
        return self.network.read_out(own_BWX)


def lean_pair(
    layer: PairLayer, norm: nn.RMSNorm, head: nn.Linear, rotary: Rotary, target: Network
) -> LeanPair | None:
    """A layer as it is now in fused kernels; None where the target runs without, or the answer is another one.

    Nothing of the modules is changed: they read the prompt, and draft where the kernels do not fit.
    """
    if target.lean is None or layer.norm_before_residual or rotary.rope_type not in ROTARY:
        return None
    if getattr(layer.self_attn.config, "sliding_window", None):
        return None
    try:
        gap = exact_distance(layer, norm, head, rotary, target.lean)
        if not gap <= STRICT:  # nor is anything that is no number
            raise ValueError(f"its answer differs by {gap:.2g} in float32")
        longest = max(rotary.max_seq_len_cached, target.max_positions or 0)
        made = packed_pair(layer, norm, head, rotary, target.lean, longest)
        gap = distance(made, layer, norm, head, rotary)
        if not gap <= tolerance(head.weight.dtype):
            raise ValueError(f"its answer differs by {gap:.2g}")
    except Exception as error:  # whatever a compiler makes of shapes that it has not met
        log.warning("the draft head is not run by the fused kernels: %s", error)
        return None
    return made


@torch.no_grad()
def packed_pair(
    layer: PairLayer, norm: nn.RMSNorm, head: nn.Linear, rotary: Rotary, lean: LeanNetwork, longest: int
) -> LeanPair:
    """The weights, those that read the same input side by side in a copy; for so many positions."""
    attention, mlp, bias = layer.self_attn, layer.mlp, layer.self_attn.q_proj.bias
    qkv = attention.q_proj, attention.k_proj, attention.v_proj
    where_1S = torch.arange(longest, device=head.weight.device)[None]
    cosines, sines = (table[0].contiguous() for table in rotary(head.weight[:1, None], where_1S))
    packed = LeanLayer(
        norm=None,
        qkv=torch.cat([linear.weight for linear in qkv]),
        qkv_bias=None if bias is None else torch.cat([linear.bias for linear in qkv]),
        gains=None,
        out=attention.o_proj.weight.detach(),
        out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.detach(),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight.detach(),
    )
    network = LeanNetwork(
        embed=lean.embed,
        layers=(packed,),
        norm=norm.weight.detach(),
        head=head.weight.detach(),
        cosines=cosines,
        sines=sines,
        epsilon=layer.hidden_norm.eps or 0.0,
        scale=float(attention.scaling),
        overlap=lean.overlap,
        kernels=lean.kernels,
    )
    return LeanPair(network, layer.input_layernorm.weight.detach(), layer.hidden_norm.weight.detach())


def exact_distance(
    layer: PairLayer, norm: nn.RMSNorm, head: nn.Linear, rotary: Rotary, lean: LeanNetwork
) -> float:
    """``distance`` in float32 and without kernels, where rounding hides no other activation and no bias."""
    layer, norm, head = copy.deepcopy(layer).float(), copy.deepcopy(norm).float(), copy.deepcopy(head).float()
    plain = replace(lean, kernels=REFERENCE, overlap=False)
    return distance(packed_pair(layer, norm, head, rotary, plain, PROBE), layer, norm, head, rotary)


@torch.no_grad()
def distance(made: LeanPair, layer: PairLayer, norm: nn.RMSNorm, head: nn.Linear, rotary: Rotary) -> float:
    """The larger gap of two, relative to their size: what is added to a few states, and what is read out of it."""
    weight, size = head.weight, layer.self_attn.head_dim
    embedded_1WX, states_1WX = scattered(2, 1, PROBE, weight.shape[1]).to(weight).unbind()
    where_1W = torch.arange(PROBE, device=weight.device)[None]
    theirs_1WX = layer(embedded_1WX, states_1WX, rotary(states_1WX, where_1W))
    empty = weight.new_zeros(2, 1, layer.self_attn.k_proj.out_features // size, PROBE + 1, size)
    sight = Sight(where_1W.new_full((1,), PROBE), where_1W + 1, torch.zeros_like(where_1W), None)
    ours_1WX = made.over(embedded_1WX, states_1WX, where_1W, where_1W, (empty[0], empty[1]), sight)
    logits_1WD = head(norm(theirs_1WX))
    made_of = (ours_1WX - theirs_1WX).float().norm() / (theirs_1WX - states_1WX).float().norm()
    said = (made.read_out(theirs_1WX) - logits_1WD).float().norm() / logits_1WD.float().norm()
    return float(torch.stack([made_of, said]).max())  # a gap that is no number is the largest
