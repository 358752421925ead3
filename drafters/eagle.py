"""EAGLE: a layer goes on with the states that the target's head reads (Li et al., arXiv 2401.15077).

B rows, W tokens of one forward, S token slots, T pairs, P places that count, X hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from drafters.checkpoint import FILES, fill, read, write
from drafters.confidence import Confidence
from drafters.feature_drafter import FeatureDrafter
from drafters.fitting import LAYERS, check_sizes, made_for
from drafters.static_tree import StaticTree
from drafters.teaching import soft_cross_entropy
from drafters.trainable import FrozenTarget
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import Layers, Rotary, layer_config, rotary_before
from specdec.types import Tap

LAW = 0.1  # weight of the laws in the loss; that of the states is 1
SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias", "max_position_embeddings", "vocab_size"),
    "num_hidden_layers",
)


class EagleHead(nn.Module):
    """Weights of an EAGLE head, the same for EAGLE-2.

    A linear map brings a token's embedding and the state before it, behind the target's final norm, to one size;
    what the layers make of them stands for the next state, which the target's own LM head reads.

    Args:
        settings: sizes of the layers, as in a Llama's ``config.json``.
        bias: whether the linear map has one.
        embeds: whether it has an embedding of its own, else it borrows the target's.

    Raises:
        ValueError: sizes that make no sense.
    """

    def __init__(self, settings: Mapping[str, Any], bias: bool = True, embeds: bool = False) -> None:
        super().__init__()
        self.config = layer_config(settings)
        hidden = self.config.hidden_size
        self.fc = nn.Linear(2 * hidden, hidden, bias=bias)
        self.layers = Layers(self.config, bare=True)
        self.embed_tokens = nn.Embedding(self.config.vocab_size, hidden) if embeds else None
        self.rotary = Rotary(self.config)

    @classmethod
    def fresh(cls, target: FrozenTarget, layers: int = 1) -> EagleHead:
        """A head of so many layers for a target, of the target's sizes, in float32."""
        return cls({**target.sizes, "num_hidden_layers": layers})

    @classmethod
    def load(cls, path: str | Path) -> EagleHead:
        """A head in its authors' layout. A copy of the target's embedding may lie in it.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: no ``config.json``, a damaged file, a tensor missing, left over or of another shape.
        """
        tensors = read(path, FILES)
        head = cls(tensors.sizes(), "fc.bias" in tensors.left, tensors.has("embed_tokens."))
        fill(head, tensors.take)
        tensors.finish()
        return head

    def save(self, path: str | Path) -> None:
        """Write a directory in the same layout."""
        sizes = {name: getattr(self.config, name) for name in SIZES} | rotary_before(self.config)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **sizes,
            **made_for(vars(self.config)),
        }
        config["bias"] = self.fc.bias is not None
        write(path, FILES[0], dict(self.named_parameters()), config)

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """X."""
        return self.fc.out_features

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The state behind the last layer."""
        return (Tap(depth),)

    def check(self, target: Network) -> None:
        """See ``FeatureHead``."""
        layers = getattr(self.config, LAYERS, None)
        check_sizes(self.width, self.config.vocab_size, target, layers)

    def feature(self, states: Mapping[Tap, Tensor], target: Network) -> Tensor:
        """See ``FeatureHead``."""
        return target.norm(states[Tap(target.depth)]).to(self.fc.weight.dtype)

    def read(
        self, tokens_BW: Tensor, features_BWX: Tensor, positions_BW: Tensor, target: Network, **attention: Any
    ) -> Tensor:
        """See ``FeatureHead``."""
        embedding = target.embed if self.embed_tokens is None else self.embed_tokens
        pair = torch.cat([embedding(tokens_BW).to(features_BWX.dtype), features_BWX], -1)
        return self.layers(self.fc(pair), self.rotary(features_BWX, positions_BW), **attention)

    def logits(self, own_BWX: Tensor, target: Network) -> Tensor:
        """See ``FeatureHead``."""
        return target.head(own_BWX)

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """Smooth L1 distance of the next states, and 0.1 times the cross-entropy of their laws.

        Takes the arguments of ``Trainable.losses``.
        """
        feature_BSX = self.feature(states, target)
        positions_1T = torch.arange(tokens_BS.shape[1] - 1, device=tokens_BS.device)[None]
        own_BTX = self.read(tokens_BS[:, 1:], feature_BSX[:, :-1], positions_1T, target)
        counts_BT = wanted_BS[:, 1:] & wanted_BS[:, :-1]
        own_PX, next_PX = own_BTX[counts_BT], feature_BSX[:, 1:][counts_BT]
        with torch.no_grad():
            next_PV = target.head(next_PX[:, None])[:, 0]
        said_PV, size = target.head(own_PX[:, None])[:, 0], max(1, own_PX.numel())
        return {
            "state": smooth_l1_loss(own_PX.float(), next_PX.float(), reduction="sum") / size,
            "law": LAW * soft_cross_entropy(said_PV, next_PV),
        }


class EagleDrafter(FeatureDrafter):
    """Drafts with an EAGLE head: a chain, a tree of ranks, or EAGLE-2's tree (arXiv 2401.15077, 2406.16858).

    Args:
        weights: a directory or file of a trained head, or a head in memory.
        length, width, nodes, tree, confidence: see ``ModelDrafter``.
        device: see ``FeatureDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``EagleHead.load`` and ``FeatureDrafter``.
    """

    def __init__(
        self,
        weights: str | Path | EagleHead,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        head = weights if isinstance(weights, EagleHead) else EagleHead.load(weights)
        super().__init__(head, length, width, nodes, tree, confidence, device)
