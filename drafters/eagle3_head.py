"""The head of EAGLE-3: one layer over three states of the target (Li et al., arXiv 2503.01840).

B rows, W tokens of one forward, X hidden size of the head, D draft vocabulary, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from drafters import eagle3_layouts as layouts
from drafters.checkpoint import FILES, Tensors, fill, read, write
from drafters.feature import PairReader
from drafters.fitting import LAYERS, check_sizes
from drafters.trainable import FrozenTarget
from drafters.unrolled import Read, at, begun, laws, mean_loss, places, unrolled
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import PairLayer, Rotary, layer_config, rms_norm
from specdec.types import Tap

STEPS, DECAY = 7, 0.8  # of the training-time test, and the weight of a step over that of the one before


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

    ids: Tensor

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
        self.config, self.vocab_size, self.target_hidden = config, int(config.vocab_size), target_hidden
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

    @classmethod
    def fresh(
        cls,
        target: FrozenTarget,
        vocabulary: int | None = None,
        layers: Sequence[int] | None = None,
        base: str | Path | None = None,
    ) -> Eagle3Head:
        """A head for a target, in float32: a layer of the target's sizes, and its LM head's rows.

        Args:
            target: what it is for.
            vocabulary: D, of the most frequent tokens at most so many; None takes all.
            layers: see the class; a base has its own.
            base: a trained head to go on from, with a part of its vocabulary; None begins with nothing.

        Raises:
            FileNotFoundError, ValueError: see ``load``, ``check`` and ``FrozenTarget.frequent``.
        """
        if base is not None:
            made = Eagle3Head.load(base).to(torch.float32)
            made.check(target)
            made.narrow(target.frequent(vocabulary, made.ids))
            return made
        weight_VX = target.head_weight.detach().to("cpu", torch.float32)
        ids_D = target.frequent(vocabulary)
        head = cls(target.sizes, weight_VX.shape[1], ids_D, layers)
        head.taps(target.depth)
        head.lm_head.weight.data.copy_(weight_VX[ids_D])
        return head

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A head of any of the public layouts; which one, its tensors and its ``config.json`` say.

        Args:
            path: a directory, or its file of weights.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: no ``config.json``, a damaged file, a tensor that is missing, left over or of another
                shape, or a variant of the head that was published.
        """
        tensors = read(path, FILES)
        settings, layers = layouts.settings_of(tensors), layouts.layers_of(tensors.config)
        wide, known = tensors.shape("fc.weight")[1], tensors.shape("lm_head.weight")[0]
        ids_D = layouts.ids_of(tensors, known, int(settings["vocab_size"]))
        embeds, residual = tensors.has("embed_tokens."), bool(tensors.config.get("norm_before_residual", False))
        hidden, more = wide // (3 if layers is None else len(layers)), cls._more(tensors)
        head = cls(settings, hidden, ids_D, layers, embeds, residual, *more)
        prefix = layouts.OWN if tensors.has(layouts.OWN) else layouts.PLAIN
        fill(head, lambda name, shape: tensors.take(name.replace(layouts.OWN, prefix), shape))
        tensors.finish()
        return head

    def narrow(self, ids_D: Tensor) -> None:
        """Keep a part of the draft vocabulary."""
        kept = torch.isin(self.ids, ids_D)
        self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach()[kept])
        self.lm_head.out_features, self.ids = len(self.lm_head.weight), self.ids[kept]

    @classmethod
    def _more(cls, tensors: Tensors) -> tuple[Any, ...]:
        """Further arguments, of a head that has more to it."""
        return ()

    def save(self, path: str | Path, layout: str = "eagle3", target: str = "") -> None:
        """Write a directory that other programs can read.

        Args:
            path: a directory.
            layout: "eagle3", as EAGLE, SpecForge, vLLM and SGLang read it; or "speculators".
            target: name of the model that it drafts for.

        Raises:
            ValueError: another layout.
        """
        if layout not in layouts.LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(layouts.LAYOUTS)}, not {layout!r}")
        weights: dict[str, Tensor] = {
            name.replace(layouts.OWN, layouts.LAYOUTS[layout]): weight for name, weight in self.named_parameters()
        }
        config = layouts.config_of(self, layout, target) | self._facts()
        write(path, FILES[0], weights | layouts.mapping(self.ids.cpu(), self.vocab_size), config)

    def _facts(self) -> dict[str, Any]:
        """What ``config.json`` says besides, of a head that has more to it."""
        return {}

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
        self.taps(target.depth)
        check_sizes(self.target_hidden, self.vocab_size, target, getattr(self.config, LAYERS, None))
        if self.embed_tokens is None and self.width != target.head_weight.shape[1]:
            raise ValueError(
                f"the head has a hidden size of {self.width} and no embedding of its own, but the target's is "
                f"{target.head_weight.shape[1]} wide: take a checkpoint with embed_tokens"
            )

    def feature(self, states: Mapping[Tap, Tensor], target: Network) -> Tensor:
        """See ``FeatureHead``."""
        return self.fc(torch.cat([states[tap] for tap in self.taps(target.depth)], -1).to(self.fc.weight.dtype))

    def read(
        self, tokens_BW: Tensor, features_BWX: Tensor, positions_BW: Tensor, target: Network, **attention: Any
    ) -> Tensor:
        """See ``FeatureHead``."""
        return self.reading(tokens_BW, target)(features_BWX, positions_BW, **attention)

    def embedded(self, tokens_BW: Tensor, target: Network) -> Tensor:
        """[B, W, X] by its own embedding or the target's."""
        return target.embed(tokens_BW) if self.embed_tokens is None else self.embed_tokens(tokens_BW)

    def logits(self, own_BWX: Tensor, target: Network) -> Tensor:
        """See ``FeatureHead``."""
        return self.spread(self.lm_head(self.norm(own_BWX)), target)

    def fused(self, target: Network) -> PairReader | None:
        """See ``FeatureHead``."""
        from drafters.eagle3_fused import fused  # where there is no GPU, their compiler may be missing

        return fused(self, target)

    def spread(self, logits_BWD: Tensor, target: Network) -> Tensor:
        """[B, W, V] over the target's ids, -inf for those outside the draft vocabulary."""
        if logits_BWD.shape[-1] == target.vocab_size:
            return logits_BWD
        logits_BWV = logits_BWD.new_full((*logits_BWD.shape[:2], target.vocab_size), -torch.inf)
        return logits_BWV.index_copy_(2, self.ids, logits_BWD)

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """By step of the training-time test, its soft cross-entropy times 0.8 to the power of its number.

        Takes the arguments of ``Trainable.losses``.
        """
        # Pair t is that of token t + 1, and says the token behind it: the target's law of place t + 1.
        place_P = places(wanted_BS[:, 1:])
        law_PD, known_P = laws(target, at(states[Tap(target.depth)][:, 1:], place_P), self.ids)
        feature_BTX = self.feature({tap: state[:, :-1] for tap, state in states.items()}, target)
        losses = {}
        for step, own_BTX in enumerate(unrolled(self.reading(tokens_BS[:, 1:], target), feature_BTX, STEPS)):
            taught_P = at(begun(wanted_BS[:, :-1], step), place_P) & known_P
            said_PD = self._said(at(own_BTX, place_P))
            losses[f"step {step + 1}"] = DECAY**step * mean_loss(said_PD, law_PD, taught_P)
        return losses

    def reading(self, tokens_BW: Tensor, target: Network) -> Read:
        """``read`` over the same tokens again and again: what is of the tokens alone is worked out once."""
        embedded_BWX = self.embedded(tokens_BW, target)

        def read(features_BWX: Tensor, positions_BW: Tensor, **attention: Any) -> Tensor:
            angles = self.rotary(features_BWX, positions_BW)
            return self.midlayer(embedded_BWX.to(features_BWX.dtype), features_BWX, angles, **attention)

        return read

    def _said(self, own_PX: Tensor) -> Tensor:
        """float32 [P, D]."""
        return self.lm_head(self.norm(own_PX)).float()
