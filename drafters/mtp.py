"""MTP: a target's own module for the token after the next one (DeepSeek-V3, arXiv 2412.19437).

B rows, W tokens of one forward, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from drafters.checkpoint import FILES, Tensors, config_of, fill, read, write
from drafters.confidence import Confidence
from drafters.feature import FeatureHead
from drafters.feature_drafter import FeatureDrafter
from drafters.fitting import check_sizes
from drafters.mtp_layouts import QWEN, Layout, layout_of
from drafters.static_tree import StaticTree
from specdec.protocols import Verifier
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import Rotary, decoder_layer, layer_config, rms_norm
from specdec.sequences import Sequences
from specdec.types import Tap

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class MTPDrafter(FeatureDrafter):
    """Drafts with the module that a target was trained with to predict further tokens; see ``FeatureDrafter``.

    Args:
        weights: the directory of the target's checkpoint, or a head; None is the directory that the target was
            read from, looked up when decoding begins.
        length, width, nodes, device: see ``FeatureDrafter``. The module is trained for one token; longer chains
            feed it what it made itself.

    Raises:
        ValueError: a checkpoint without such a module, or with one whose layer is not supported, or what
            ``FeatureDrafter`` refuses.
    """

    def __init__(
        self,
        weights: str | Path | MTPHead | None = None,
        length: int = 1,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        head = MTPHead.load(weights) if isinstance(weights, str | Path) else weights
        super().__init__(cast(FeatureHead, head), length, width, nodes, tree, confidence, device)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """See ``FeatureDrafter``."""
        if cast(object, self.head) is None and target.model is not None:
            self.head = MTPHead.load(home(target))
        super().begin(target, seq)


def home(target: Verifier) -> Path:
    """The directory that a target was read from. Raises ValueError where there is none."""
    name = getattr(target.model.network.module.config, "_name_or_path", "")
    if not name or not Path(name).is_dir():
        raise ValueError(
            "nobody knows the directory that the target was read from: pass its path as weights, transformers "
            "leaves its MTP module out"
        )
    return Path(name)


class MTPHead(nn.Module):
    """Weights of one MTP module: norms of embedding and state, a projection of both, one layer, and a norm.

    Args:
        settings: sizes, as in the target's ``config.json``.
        layout: how its checkpoints name the parts, and in what it differs otherwise.
        normed: whether query and key heads are normed, as in Qwen3.
        biased: projections of the attention that have a bias.

    Raises:
        ValueError: sizes that make no sense.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        layout: Layout = QWEN,
        normed: bool = True,
        biased: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.settings, self.layout = dict(settings), layout
        config = layer_config({**settings, "num_hidden_layers": 1, "layer_types": None, "attention_bias": False})
        self.vocab_size = int(config.vocab_size)
        self.embedding_norm, self.state_norm, self.norm = (rms_norm(config) for _ in range(3))
        self.project = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = decoder_layer(config, normed, biased)
        self.rotary = Rotary(config)

    @classmethod
    def load(cls, directory: str | Path) -> MTPHead:
        """Of a target's checkpoint, of which nothing else is read. See ``MTPDrafter``."""
        depth = depth_of(directory)
        tensors = read(directory, FILES, lambda name: layout_of([name], depth) is not None)
        settings, layout = tensors.sizes("text_config"), layout_of(tensors.left, depth)
        if layout is None:
            raise ValueError(f"{directory} holds no MTP module: the target was trained or published without one")
        attention = layout.name("layer.self_attn.", depth)
        biased = [part for part in PROJECTIONS if f"{attention}{part}.bias" in tensors.left]
        head = cls(settings, layout, f"{attention}q_norm.weight" in tensors.left, biased)
        head.refuse_other_layers(tensors)
        fill(head, lambda name, shape: tensors.take(head.published(name), shape))
        return head

    def save(self, directory: str | Path) -> None:
        """Write its tensors and sizes, named as in the target's checkpoint."""
        weights = {self.published(name): part for name, part in self.state_dict().items()}
        write(directory, FILES[0], weights, self.settings)

    @property
    def published(self) -> Callable[[str], str]:
        """The name of a weight in the target's checkpoint, from its name here."""
        depth = int(self.settings.get("num_hidden_layers", 0))
        return lambda name: self.layout.name(name, depth)

    def refuse_other_layers(self, tensors: Tensors) -> None:
        """Raises ValueError where a module has other parts than these."""
        # Copies of the target's embedding and head may lie beside it.
        mine = {self.published(name) for name in (*self.state_dict(), "embed_tokens.weight", "head.weight")}
        first = self.published("")
        others = [name for name in sorted(tensors.left) if name.startswith(first) and name not in mine]
        if others:
            named = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
            raise ValueError(
                f"the MTP module of {tensors.file} is not supported: it has {named}. Only dense layers like "
                "Llama's are, without latent attention (MLA), experts, linear attention or quantised weights"
            )
        for name, plain in (("attn_output_gate", False), ("partial_rotary_factor", 1)):
            if self.settings.get(name, plain) not in (plain, None):
                raise ValueError(f"the MTP module of {tensors.file} is not supported: its layer has {name}")

    @property
    def depth(self) -> int:
        """Layers."""
        return 1

    @property
    def width(self) -> int:
        """X."""
        return self.project.out_features

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The state behind the last layer."""
        return (Tap(depth),)

    def check(self, target: Network) -> None:
        """See ``FeatureHead``."""
        check_sizes(self.width, self.vocab_size, target)

    def feature(self, states: Mapping[Tap, Tensor], target: Network) -> Tensor:
        """The last state behind the target's final norm: what its LM head reads too."""
        return target.norm(states[Tap(target.depth)]).to(self.project.weight.dtype)

    def read(
        self, tokens_BW: Tensor, features_BWX: Tensor, positions_BW: Tensor, target: Network, **attention: Any
    ) -> Tensor:
        """See ``FeatureHead``."""
        pair = [
            self.embedding_norm(target.embed(tokens_BW).to(features_BWX.dtype)),
            self.state_norm(features_BWX),
        ]
        joined_BWX = self.project(torch.cat(pair[::-1] if self.layout.state_first else pair, -1))
        own_BWX = self.layer(joined_BWX, position_embeddings=self.rotary(joined_BWX, positions_BW), **attention)
        return self.norm(own_BWX) if self.layout.goes_on_normed else own_BWX

    def logits(self, own_BWX: Tensor, target: Network) -> Tensor:
        """See ``FeatureHead``: the target's LM head."""
        return target.head(own_BWX if self.layout.goes_on_normed else self.norm(own_BWX))


def depth_of(directory: str | Path) -> int:
    """Layers of the target that a checkpoint is of, which its module's names count from."""
    whole = config_of(directory)
    return int((whole.get("text_config") or whole).get("num_hidden_layers", 0))
