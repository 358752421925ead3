"""Attention of a few new tokens over a cache, under an explicit mask.

B rows, W new tokens, S slots that are read, H key-value heads, G query heads per key-value head, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from specdec.runtime.cache import KVCache
from specdec.runtime.sight import Sight


@dataclass(eq=False)  # frozen, PyTorch 2.11 would compile a layer anew wherever one of these fields differs
class Window:
    """Where the tokens of one forward are written, and what each of them may see.

    Attributes:
        cache: the cache.
        slots: int64 [B, W], slot each token is written to.
        start: the first slot, if every row writes to consecutive slots from there, else None.
        span: S.
        allowed: bool [B, W, S]; None where every token sees all that is read.
        triangle: whether ``allowed`` is the plain triangle of a prefill, W = S.
        positions: int64 [B, W], position of each token.
        slot_positions: int64 [B, S], position of the token in each slot.
        sight: in place of ``allowed``, for attention that needs no mask.
        written: layers that have written so far.
    """

    cache: KVCache
    slots: Tensor
    start: int | None
    span: int
    allowed: Tensor | None
    triangle: bool
    positions: Tensor
    slot_positions: Tensor
    sight: Sight | None = None
    written: set[int] = field(default_factory=set)
    _masks: dict[tuple[int | None, int], Tensor | None] = field(default_factory=dict)

    def mask(self, sliding: int | None, groups: int) -> Tensor | None:
        """bool [B, 1, G * W, S], None where there is nothing to hide. Made once per forward and kind of layer."""
        key = (sliding if self.slides(sliding) else None, groups)
        if key not in self._masks:
            self._masks[key] = self._mask(sliding, groups)
        return self._masks[key]

    def slides(self, sliding: int | None) -> bool:
        """Whether a sliding window of this size hides anything."""
        return sliding is not None and self.span > sliding

    def _mask(self, sliding: int | None, groups: int) -> Tensor | None:
        allowed_BWS = self.allowed
        if sliding is not None and self.slides(sliding):
            near_BWS = self.positions[..., None] - self.slot_positions[:, None] < sliding
            allowed_BWS = near_BWS if allowed_BWS is None else allowed_BWS & near_BWS
        return None if allowed_BWS is None else allowed_BWS[:, None].repeat(1, 1, groups, 1)


@torch.compiler.disable  # a layer's code is compiled around it, and so is the same for every layer
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    window: Window | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """An attention function for ``transformers.AttentionInterface`` that reads and writes our cache.

    Args:
        query: [B, H * G, W, E].
        key, value: [B, H, W, E], of the new tokens only.
        window: the forward's slots and mask, sent through the model's keyword arguments.

    Returns:
        [B, W, H * G, E].

    Raises:
        ValueError: the layer does not hand the window on, or asks for something that is not done here.
    """
    if window is None:
        raise ValueError(f"{type(module).__name__} does not hand keyword arguments on to its attention function")
    layer: Any = module.layer_idx
    wants = unsupported(module, query, attention_mask, window, others)
    if wants:
        name = f"{type(module).__name__} wants {', '.join(wants)} in its attention"
        raise ValueError(f"{name}: not supported, choose another model")
    window.written.add(layer)
    sliding_window = sliding(module, layer, sliding_window, window.span)
    window.cache.write(layer, key, value, window.slots, window.start)
    rows, heads, width, size = query.shape
    groups = heads // key.shape[1]
    if window.sight is not None:
        from specdec.kernels import attention

        q_MX = query.transpose(1, 2).reshape(rows * width, heads * size)
        sight = window.sight.within(sliding_window)
        keys_values = window.cache.keys[layer], window.cache.values[layer]
        out_MX = attention.attend(q_MX, *keys_values, sight, size**-0.5 if scaling is None else scaling)
        return out_MX.reshape(rows, width, heads, size), None
    if window.triangle and not window.slides(sliding_window):
        attended = scaled_dot_product_attention(
            query, key, value, is_causal=width > 1, scale=scaling, enable_gqa=groups > 1
        )
        return attended.transpose(1, 2).contiguous(), None
    keys, values = window.cache.read(layer, window.span)
    # Query heads that share a key-value head are laid end to end, so that no key is ever repeated.
    packed = query.reshape(rows, key.shape[1], groups * width, size)
    attended = scaled_dot_product_attention(
        packed, keys, values, attn_mask=window.mask(sliding_window, groups), scale=scaling
    )
    return attended.reshape(rows, heads, width, -1).transpose(1, 2).contiguous(), None


def unsupported(
    module: nn.Module, query: Tensor, attention_mask: Tensor | None, window: Window, others: dict[str, Any]
) -> list[str]:
    """What a layer asks of its attention and would not get, which would make its output wrong."""
    asks = {
        "a mask of its own": attention_mask is not None,  # transformers makes none for us
        "to see later tokens": not getattr(module, "is_causal", True),
        "to skip tokens": query.shape[2] != window.slots.shape[1],
        "two goes in one layer": module.layer_idx in window.written,
    }
    names = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    return names + [name for name, asked in asks.items() if asked]


def sliding(module: nn.Module, layer: int, handed: int | None, span: int) -> int | None:
    """The sliding window of a layer; some do not hand it on, and rely on the mask that transformers makes.

    Raises:
        ValueError: the model may slide, but nothing says which layers do.
    """
    config = getattr(module, "config", None)
    kinds, size = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if handed is not None or not size:
        return handed
    if kinds:
        return int(size) if kinds[layer] == "sliding_attention" else None
    if span > size:
        raise ValueError(
            f"{type(module).__name__} does not hand its sliding window on: keep rows within {size} tokens, "
            "or choose another model"
        )
    return None
