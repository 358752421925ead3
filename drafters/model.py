"""A small language model with the target's vocabulary as drafter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drafters.rollout import OneToken, Streams, chain, top_k_tree
from drafters.roots import DraftModel, Roots, fit
from drafters.window import check_length
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel, load
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Want


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

    wants: tuple[Want, ...] = ()
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
    def identity(self) -> object:
        """What a recording may take it for: of another shape, it drafts something else."""
        return self, self.shape

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return self.shape.width

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

    def look(self, context: Context, window: Draft) -> Tensor:
        """[B, M, V]: its own logits after the last committed token and each node of a window."""
        return self.shape.look(self.model, context, window, self._vocabulary)

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        """A chain or a tree for every row, from what it found when it looked at a window last."""
        return self.shape.resume(self.model, context, window, own_BMV, noise, self._vocabulary)

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """A chain or a tree for every outcome of the window that it looked at last; rows b * X + x."""
        return self.shape.branch(self.model, context, window, outcomes, noise, self._vocabulary)


@dataclass(frozen=True)
class Shape:
    """How far and how wide a model drafts, and what a forward yields.

    Attributes:
        length, width, nodes: see ``ModelDrafter``.
        streams: tokens beyond the next one.

    Raises:
        ValueError: a value below 1, or streams on a tree.
    """

    length: int
    width: int
    nodes: int | None
    streams: Streams = field(default_factory=OneToken)

    def __post_init__(self) -> None:
        if self.width < 1 or (self.nodes is not None and self.nodes < 1):
            raise ValueError(f"width and nodes must be at least 1, not {self.width} and {self.nodes}")
        check_length(self.length)
        if self.width > 1 and self.streams.tokens_per_step > 1:
            raise ValueError(
                f"streams go on with a chain, not with a tree of width {self.width}: "
                "choose width=1 or one token a step"
            )

    @property
    def size(self) -> int:
        """Most nodes of a draft: a first level of ``width``, then levels of ``width`` times ``width``."""
        whole = self.length if self.width == 1 else self.width + (self.length - 1) * self.width**2
        return whole if self.nodes is None or self.width == 1 else min(whole, self.nodes)

    def behind(self, model: DraftModel) -> int:
        """Committed tokens that the model lacks at most when it is asked again.

        Of its own last chain it has not read the last step's tokens, and of the target's round the correction.
        Of a tree only the first chain of nodes lies where committed tokens do.
        """
        remembers = model.remembers and self.width == 1
        return (self.length - 1) % self.streams.tokens_per_step + 2 if remembers else self.length + 1

    def draft(self, model: DraftModel, context: Context, noise: Noise, vocabulary: int) -> Draft:
        """Draft with a model, no deeper than the rows have room for unless nodes are chosen: see ``_length``."""
        length = self._length(context.depth)
        if length < 1:
            return Draft.empty(context.lengths)
        roots = Roots.committed(model, context, vocabulary, self.behind(model), chain=self.width == 1)
        return self._grown(model, roots, noise, length, vocabulary)

    def look(self, model: DraftModel, context: Context, window: Draft, vocabulary: int) -> Tensor:
        """Read a window; logits [B, M, V]."""
        waits, nodes = self.behind(model) if context.static else None, (window.tokens, window.parents)
        scores = model.advance(context.tokens, context.lengths, nodes, behind=waits, chain=window.fanout == 1)
        return fit(scores.logits, vocabulary)

    def resume(
        self, model: DraftModel, context: Context, window: Draft, own_BMV: Tensor, noise: Noise, vocabulary: int
    ) -> Draft:
        """Draft beside a window that was read last, behind the last committed tokens, which were read with it."""
        length = self._length(context.depth)
        if length < 1:
            return Draft.empty(context.lengths)
        model.hang(context.lengths, (window.tokens, window.parents), window.fanout == 1, context.static)
        roots = Roots.beside(context, window, own_BMV[:, :1], vocabulary)
        return self._grown(model, roots, noise, length, vocabulary)

    def branch(
        self,
        model: DraftModel,
        context: Context,
        window: Draft,
        outcomes: Hypotheses,
        noise: Noise,
        vocabulary: int,
    ) -> Draft:
        """Draft behind every outcome of the window that was read last."""
        length = self._length(None if context.depth is None else context.depth - 1)
        if length < 1:
            return Draft.empty(context.lengths.repeat_interleave(outcomes.size))
        model.hang(context.lengths, (window.tokens, window.parents), window.fanout == 1, context.static)
        roots = Roots.supposed(model, context, window, outcomes, vocabulary)
        return self._grown(model, roots, noise, length, vocabulary)

    def _length(self, depth: int | None) -> int:
        """Levels to draft where no more than ``depth`` can be committed; None where nobody knows.

        Which nodes survive a choice depends on all levels, and an outcome's room is known only once it is true: a
        tree that is pruned grows whole, so that every side chooses alike. The loop cuts what is too deep.
        """
        pruned = self.width > 1 and self.nodes is not None
        if depth is None or (pruned and depth > 0):
            return self.length
        return min(self.length, depth)

    def _grown(self, model: DraftModel, roots: Roots, noise: Noise, length: int, vocabulary: int) -> Draft:
        if self.width == 1:
            return chain(model, roots, noise, length, vocabulary, self.streams)
        return top_k_tree(model, roots, length, self.width, self.nodes, vocabulary)


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
