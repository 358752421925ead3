"""A decoder layer in which the tokens of a block see each other, and states of another model before them.

B rows, W tokens of a block, K states, S slots that are read, H key-value heads, E head width, X hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from specdec.runtime.huggingface_layers import HeadAttention, rms_norm

Angles = tuple[Tensor, Tensor]


class BlockAttention(HeadAttention):
    """Of a block: every token sees states before it, and the whole block."""

    def mix(self, block_BWX: Tensor, angles: Angles, before: tuple[Tensor, Tensor], seen_BS: Tensor) -> Tensor:
        """[B, W, X]; see ``BlockLayer``."""
        query = self.query(block_BWX, angles)
        own = self.project(block_BWX, angles)
        keys, values = (torch.cat(pair, 2) for pair in zip(before, own, strict=True))
        whole_BW = seen_BS.new_ones(block_BWX.shape[:2])
        allowed_BS = torch.cat([seen_BS, whole_BW], 1)
        rows, heads, width, size = query.shape
        # Query heads that share a key-value head are laid end to end: all see the same, so no key is repeated.
        packed = query.reshape(rows, keys.shape[1], -1, size)
        mixed = scaled_dot_product_attention(packed, keys, values, attn_mask=allowed_BS[:, None, None])
        return self.o_proj(mixed.reshape(rows, heads, width, size).transpose(1, 2).flatten(2))


class BlockLayer(nn.Module):
    """The attention, and an MLP (DFlash, arXiv 2602.06036).

    Args:
        config: sizes; see ``layer_config``.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.self_attn = BlockAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = rms_norm(config)
        self.post_attention_layernorm = rms_norm(config)

    def forward(self, block_BWX: Tensor, angles: Angles, before: tuple[Tensor, Tensor], seen_BS: Tensor) -> Tensor:
        """[B, W, X] behind the layer, before any norm.

        Args:
            block_BWX: the block, in front of the layer.
            angles: of its positions.
            before: keys and values [B, H, S, E] of the states before it; see ``HeadAttention.project``.
            seen_BS: bool, which of those there are.
        """
        stream_BWX = block_BWX + self.self_attn.mix(self.input_layernorm(block_BWX), angles, before, seen_BS)
        return stream_BWX + self.mlp(self.post_attention_layernorm(stream_BWX))
