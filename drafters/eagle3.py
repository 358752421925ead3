"""EAGLE-3: one layer over three states of the target, which goes on with its own (Li et al., arXiv 2503.01840).

B rows, W tokens of one forward, X hidden size of the head, D draft vocabulary, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drafters.feature_drafter import FeatureDrafter
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import PairLayer, Rotary, layer_config, rms_norm
from specdec.types import Tap


class Eagle3Drafter(FeatureDrafter):
    """Drafts with an EAGLE-3 head, a chain or EAGLE-2's tree; see ``FeatureDrafter``."""


class Eagle3Head(nn.Module):
    """Weights of an EAGLE-3 head.

    Each pair of a token and the fused states before it goes through one layer, whose output, before any norm, is
    the feature of the next pair. The law is over a part of the target's vocabulary, its most frequent tokens.

    Args:
        settings: sizes of the layer, as in a Llama's ``config.json``.
        target_hidden: of each state.
        ids: int64 [D], ids of the draft vocabulary in the target's; None takes all V of ``settings``.
        layers: how many layers of the target run before each of the three states; None is the paper's choice, 2,
            half of them, and all but 3.
        embeds: whether it has an embedding of its own, else it borrows the target's.
        norm_before_residual: see ``PairLayer``.

    Raises:
        ValueError: sizes that make no sense, or ids outside the vocabulary.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        target_hidden: int,
        ids: Tensor | None = None,
        layers: Sequence[int] | None = None,
        embeds: bool = False,
        norm_before_residual: bool = False,
    ) -> None:
        super().__init__()
        config = layer_config({**settings, "num_hidden_layers": 1})
        self.vocab_size = int(config.vocab_size)
        self.layers, count = layers, 3 if layers is None else len(layers)
        self.midlayer = PairLayer(config, norm_before_residual)
        self.fc = nn.Linear(count * target_hidden, config.hidden_size, bias=False)
        self.norm = rms_norm(config)
        known = torch.arange(config.vocab_size) if ids is None else ids
        if len(known) == 0 or int(known.min()) < 0 or int(known.max()) >= config.vocab_size:
            raise ValueError(f"ids of a draft vocabulary must be from 0 to {config.vocab_size - 1}")
        self.lm_head = nn.Linear(config.hidden_size, len(known), bias=False)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if embeds else None
        self.register_buffer("ids", known, persistent=False)
        self.rotary = Rotary(config)

    @property
    def depth(self) -> int:
        """Layers."""
        return 1

    @property
    def width(self) -> int:
        """X."""
        return self.lm_head.in_features

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The states it reads. Raises ValueError where the target has too few layers."""
        layers = (2, depth // 2, depth - 3) if self.layers is None else self.layers
        if min(layers) < 0 or max(layers) > depth:
            raise ValueError(f"the head reads states behind layers {tuple(layers)}, but the target has {depth}")
        return tuple(Tap(layer) for layer in layers)

    def check(self, target: Network) -> None:
        """See ``FeatureHead``."""
        hidden = self.fc.in_features // (3 if self.layers is None else len(self.layers))
        for name, ours, theirs in (
            ("hidden size", hidden, target.head_weight.shape[1]),
            ("vocabulary", self.vocab_size, target.vocab_size),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the head was made for a target with a {name} of {ours}, but this one has {theirs}"
                )
        if self.embed_tokens is None and self.width != target.head_weight.shape[1]:
            raise ValueError(
                f"the head has a hidden size of {self.width} and no embedding of its own, but the target's is "
                f"{target.head_weight.shape[1]} wide: take a checkpoint with embed_tokens"
            )

    def feature(self, states: Mapping[Tap, Tensor], target: Network) -> Tensor:
        """See ``FeatureHead``."""
        side_by_side = torch.cat([states[tap] for tap in self.taps(target.depth)], -1)
        return self.fc(side_by_side.to(self.fc.weight.dtype))

    def read(
        self, tokens_BW: Tensor, features_BWX: Tensor, positions_BW: Tensor, target: Network, **attention: Any
    ) -> Tensor:
        """See ``FeatureHead``."""
        embedding = target.embed if self.embed_tokens is None else self.embed_tokens
        embedded_BWX = embedding(tokens_BW).to(features_BWX.dtype)
        return self.midlayer(embedded_BWX, features_BWX, self.rotary(features_BWX, positions_BW), **attention)

    def logits(self, own_BWX: Tensor, target: Network) -> Tensor:
        """See ``FeatureHead``."""
        logits_BWD = self.lm_head(self.norm(own_BWX))
        if logits_BWD.shape[-1] == target.vocab_size:
            return logits_BWD
        logits_BWV = logits_BWD.new_full((*logits_BWD.shape[:2], target.vocab_size), -torch.inf)
        return logits_BWV.index_copy(2, self.ids, logits_BWD)
