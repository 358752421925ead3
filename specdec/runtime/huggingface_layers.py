"""Decoder layers for draft heads: transformers' own, with an attention that drafts and trains.

B rows, W tokens of one forward, S slots that are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from specdec.runtime.attention import Window, attend

ATTENTION = "specdec-head"


def attend_either(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    window: Window | None = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Over our cache where a ``window`` says so; else over what is given, which has gradients.

    Args:
        query: [B, heads, W, size]; key, value: [B, key-value heads, S, size].
        attention_mask: bool [B or 1, 1, W, S]; None is the triangle of a text.
    """
    if window is not None:
        return attend(module, query, key, value, attention_mask, scaling, window=window, **others)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        is_causal=attention_mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend_either)


def layer_config(settings: Mapping[str, Any]) -> LlamaConfig:
    """Sizes of a draft head's layers, from its ``config.json``. Raises ValueError where they make no sense."""
    known = {name: value for name, value in settings.items() if name not in ("architectures", "model_type")}
    try:
        config = LlamaConfig.from_dict(known)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"the sizes of the draft head's layers make no sense: {error}") from error
    config._attn_implementation_internal = ATTENTION
    return config


def rotary_before(config: LlamaConfig) -> dict[str, Any]:
    """``rope_parameters`` by the names before transformers 5, without which others take their defaults."""
    given = dict(config.rope_parameters)
    theta, scaled = given.pop("rope_theta"), given.get("rope_type", "default") != "default"
    return {"rope_theta": theta, "rope_scaling": given if scaled else None}


class HeadAttention(LlamaAttention):
    """An attention that can be used in parts.

    Args:
        config: its sizes; see ``layer_config``.
        normed: whether query and key heads are normed, as in Qwen3.
    """

    def __init__(self, config: LlamaConfig, normed: bool = True) -> None:
        super().__init__(config, layer_idx=0)
        for name in ("q_norm", "k_norm"):
            norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps) if normed else nn.Identity()
            setattr(self, name, norm)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        **attention: Any,
    ) -> tuple[Tensor, None]:
        """[B, W, hidden]; ``attention``: see ``attend_either``."""
        query = self.query(hidden_states, position_embeddings)
        key, value = self.project(hidden_states, position_embeddings)
        mixed, _ = attend_either(self, query, key, value, attention_mask, scaling=self.scaling, **attention)
        return self.o_proj(mixed.flatten(2)), None

    def query(self, states_BWX: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """Queries [B, heads, W, size] of states."""
        return rotated(self.q_norm(self._heads(self.q_proj(states_BWX))).transpose(1, 2), angles)

    def project(self, states_BKX: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values [B, key-value heads, K, size] of states."""
        keys, values = self._heads(self.k_proj(states_BKX)), self._heads(self.v_proj(states_BKX))
        return rotated(self.k_norm(keys).transpose(1, 2), angles), values.transpose(1, 2)

    def _heads(self, states_BWX: Tensor) -> Tensor:
        return states_BWX.unflatten(-1, (-1, self.head_dim))


def rotated(heads: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Query or key heads [B, heads, W, size], turned by the angles of their positions."""
    cosines, sines = (part[:, None] for part in angles)
    left, right = heads.chunk(2, -1)
    return heads * cosines + torch.cat([-right, left], -1) * sines


def decoder_layer(config: LlamaConfig, normed: bool = False, biased: Collection[str] = ()) -> LlamaDecoderLayer:
    """A plain decoder layer, or one with norms of its heads.

    Args:
        config: its sizes; see ``layer_config``.
        normed: whether query and key heads are normed, as in Qwen3.
        biased: which of ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` have a bias, all but the last in Qwen2.
    """
    layer: Any = LlamaDecoderLayer(config, 0)
    layer.self_attn = HeadAttention(config) if normed else layer.self_attn
    for name in biased:
        plain: nn.Linear = getattr(layer.self_attn, name)
        setattr(layer.self_attn, name, nn.Linear(plain.in_features, plain.out_features))
    return layer


class AttentionLayer(nn.Module):
    """A layer that only attends, on top of a residual stream (Kangaroo, arXiv 2404.18911)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = HeadAttention(config, normed=False)
        self.input_layernorm = rms_norm(config)

    def forward(self, states_BWX: Tensor, angles: tuple[Tensor, Tensor], **attention: Any) -> Tensor:
        """[B, W, hidden] behind the layer, before any norm; ``attention``: see ``attend_either``."""
        return states_BWX + self.self_attn(self.input_layernorm(states_BWX), angles, **attention)[0]

    def project(self, states_BKX: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Keys and values [B, key-value heads, K, size] of states."""
        return self.self_attn.project(self.input_layernorm(states_BKX), angles)


class Layers(nn.ModuleList):
    """Plain decoder layers, one behind the other.

    Args:
        config: their sizes; see ``layer_config``.
        bare: whether the first has no norm before its attention, as where features are no residual stream.
    """

    def __init__(self, config: LlamaConfig, bare: bool = False) -> None:
        super().__init__(LlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        if bare:
            first: Any = self[0]
            first.input_layernorm = nn.Identity()

    def forward(self, states_BWX: Tensor, angles: tuple[Tensor, Tensor], **attention: Any) -> Tensor:
        """[B, W, hidden] behind the last layer, before any norm; ``attention``: see ``attend_either``."""
        for layer in self:
            states_BWX = layer(states_BWX, position_embeddings=angles, **attention)
        return states_BWX


class PairLayer(nn.Module):
    """A decoder layer whose attention reads a token's embedding and a state side by side (EAGLE-3, 2503.01840).

    Args:
        config: its sizes; see ``layer_config``.
        norm_before_residual: whether the state goes into the residual stream as it is read, normed.
    """

    def __init__(self, config: LlamaConfig, norm_before_residual: bool = False) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx=0)
        for name in ("q_proj", "k_proj", "v_proj"):
            before: nn.Linear = getattr(self.self_attn, name)
            wider = nn.Linear(2 * before.in_features, before.out_features, bias=before.bias is not None)
            setattr(self.self_attn, name, wider)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = rms_norm(config)
        self.hidden_norm = rms_norm(config)
        self.post_attention_layernorm = rms_norm(config)
        self.norm_before_residual = norm_before_residual

    def forward(
        self, embedded_BWX: Tensor, states_BWX: Tensor, angles: tuple[Tensor, Tensor], **attention: Any
    ) -> Tensor:
        """[B, W, hidden] behind the layer, before any norm; ``attention``: see ``attend_either``."""
        normed_BWX = self.hidden_norm(states_BWX)
        pair_BWX = torch.cat([self.input_layernorm(embedded_BWX), normed_BWX], -1)
        attention.setdefault("attention_mask", None)
        attended_BWX, _ = self.self_attn(hidden_states=pair_BWX, position_embeddings=angles, **attention)
        stream_BWX = (normed_BWX if self.norm_before_residual else states_BWX) + attended_BWX
        return stream_BWX + self.mlp(self.post_attention_layernorm(stream_BWX))


class Rotary(LlamaRotaryEmbedding):
    """Angles of positions; they stay exact whatever type the weights take."""

    inv_freq: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Rotary:
        exact = self.inv_freq
        super()._apply(fn, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self


class RootMeanSquareNorm(nn.RMSNorm):
    """PyTorch's own, one kernel where transformers' takes six; computes in the type of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        return super().forward(x.to(self.weight.dtype))


def rms_norm(config: LlamaConfig) -> RootMeanSquareNorm:
    """A norm of the layers' kind."""
    return RootMeanSquareNorm(config.hidden_size, eps=config.rms_norm_eps)
