"""A small language model with the target's vocabulary as drafter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from drafters.rollout import chain, top_k_tree
from drafters.window import check_length
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel, load
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Tap


class ModelDrafter:
    """Drafts with any causal language model that shares the target's vocabulary.

    With ``width`` 1 a chain of ``length`` tokens drawn from the model's own law (Leviathan et al., arXiv
    2211.17192); else a tree of the likeliest tokens, ``length`` levels deep, of at most ``nodes`` nodes
    (SpecInfer, arXiv 2305.09781; EAGLE-2's choice of nodes, arXiv 2406.16858).

    Args:
        model: a Hugging Face id, a directory, a GGUF file, a short name, or a model in memory.
        length: tokens of the chain, or levels of the tree.
        width: children per node, and nodes that have children per level.
        nodes: most nodes of the tree; None keeps all.
        tokenizer: for a model in memory, so that vocabularies can be compared token by token.
        dtype, device, runtime: see ``specdec.runtime.load``; rounds are replayed if the target's runtime does so.

    Raises:
        ValueError: a length, width or nodes below 1, or (when decoding begins) another vocabulary.
        OSError: there is no such model.
    """

    wants: tuple[Tap, ...] = ()
    static = True

    def __init__(
        self,
        model: str | Path | nn.Module | CachedModel,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tokenizer: Any | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        runtime: str = "auto",
    ) -> None:
        self.shape = Shape(length, width, nodes)
        loaded = load(model, tokenizer, dtype, device, runtime)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._vocabulary = 0

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the last generation. Raises ValueError where the vocabularies or the devices differ."""
        check_vocabulary(self, target)
        if self.model.device != target.device:
            raise ValueError(
                f"the draft model is on {self.model.device} and the target on {target.device}: put both on one"
            )
        self._vocabulary = target.vocab_size
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)
        if seq.static:  # so that the first draft is like all others, and can be replayed
            self.model.advance(seq.tokens, seq.lengths)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        return self.shape.draft(self.model, context, noise, self._vocabulary)


class Shape:
    """How far and how wide a model drafts. Raises ValueError for values below 1."""

    def __init__(self, length: int, width: int, nodes: int | None) -> None:
        if width < 1 or (nodes is not None and nodes < 1):
            raise ValueError(f"width and nodes must be at least 1, not {width} and {nodes}")
        self.length, self.width, self.nodes = check_length(length), width, nodes

    @property
    def size(self) -> int:
        """Most nodes of a draft: a first level of ``width``, then levels of ``width`` times ``width``."""
        whole = self.length if self.width == 1 else self.width + (self.length - 1) * self.width**2
        return whole if self.nodes is None or self.width == 1 else min(whole, self.nodes)

    def draft(self, model: CachedModel, context: Context, noise: Noise, vocabulary: int) -> Draft:
        """Draft with a model, no deeper than the rows have room for."""
        length = self.length if context.depth is None else min(self.length, context.depth)
        if length < 1:
            return Draft.empty(context.lengths)
        if self.width == 1:
            return chain(model, context, noise, length, vocabulary)
        return top_k_tree(model, context, length, self.width, self.nodes, vocabulary)


def check_vocabulary(drafter: ModelDrafter, target: Verifier) -> None:
    """Raises ValueError unless drafter and target mean the same by every token id."""
    mine, theirs = drafter.tokenizer, getattr(target, "tokenizer", None)
    if mine is not None and theirs is not None:
        same = mine.get_vocab() == theirs.get_vocab()
    else:  # without both tokenizers the width of the logits is all there is to compare
        same = drafter.model.vocab_size == target.vocab_size
    if not same:
        raise ValueError(
            f"the draft model's vocabulary ({drafter.model.vocab_size} ids) is not the target's "
            f"({target.vocab_size} ids): draft with a model that uses the same tokenizer"
        )
