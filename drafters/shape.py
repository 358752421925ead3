"""How far and how wide a model drafts.

B rows, X roots per row, N nodes of a draft, M = N + 1, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from drafters.confidence import Confidence, TokenProbability
from drafters.rollout import OneToken, Streams, chain, top_k_tree
from drafters.roots import DraftModel, Roots, fit
from drafters.static_tree import StaticTree
from drafters.window import check_length
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.types import Context, Draft


@dataclass(frozen=True)
class Shape:
    """How far and how wide a model drafts, and what a forward yields.

    Attributes:
        length, width, nodes: see ``ModelDrafter``; with a tree, the length is that tree's.
        streams: tokens beyond the next one.
        tree: the ranks of a tree's tokens, None where they are not chosen beforehand.
        confidence: whether a chain goes on, None where it always does.

    Raises:
        ValueError: a value below 1, or what does not go together.
    """

    length: int
    width: int
    nodes: int | None
    streams: Streams = field(default_factory=OneToken)
    tree: StaticTree | None = None
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        if self.tree is not None:
            object.__setattr__(self, "length", self.tree.depth)
        if self.width < 1 or (self.nodes is not None and self.nodes < 1):
            raise ValueError(f"width and nodes must be at least 1, not {self.width} and {self.nodes}")
        check_length(self.length)
        if self.tree is not None and (self.width > 1 or self.nodes is not None):
            raise ValueError(
                f"a tree has its own width and nodes, not {self.width} and {self.nodes}: "
                "choose width=1 and nodes=None, or leave the tree out"
            )
        if not self.is_chain and self.streams.tokens_per_step > 1:
            other = "width=1" if self.tree is None else "no tree"
            raise ValueError(
                f"streams go on with a chain, not with {self._kind}: choose {other} or one token a step"
            )
        if self.confidence is not None and (not self.is_chain or self.streams.tokens_per_step > 1):
            kind = "streams" if self.is_chain else self._kind
            raise ValueError(f"confidence ends chains of one token a step, not {kind}: leave one of both out")

    @classmethod
    def asked(
        cls,
        length: int,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> Shape:
        """From what users give; a number of ``confidence`` is a token's least probability."""
        return cls(
            length,
            width,
            nodes,
            tree=None if tree is None else StaticTree.of(tree),
            confidence=TokenProbability(confidence) if isinstance(confidence, int | float) else confidence,
        )

    @property
    def is_chain(self) -> bool:
        """Whether drafts are chains."""
        return self.width == 1 and self.tree is None

    @property
    def _kind(self) -> str:
        return f"a tree of width {self.width}" if self.tree is None else f"a tree of {self.tree.size} paths"

    @property
    def size(self) -> int:
        """Most nodes of a draft: a first level of ``width``, then levels of ``width`` times ``width``."""
        if self.tree is not None:
            return self.tree.size
        whole = self.length if self.is_chain else self.width + (self.length - 1) * self.width**2
        return whole if self.nodes is None or self.is_chain else min(whole, self.nodes)

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return self.width if self.tree is None else self.tree.fanout

    def prepare(self, vocabulary: int, device: torch.device) -> None:
        """Before drafts on a device. Raises ValueError for ranks that a vocabulary does not have."""
        if self.tree is None:
            return
        if self.tree.ranks > vocabulary:
            raise ValueError(
                f"the tree has ranks up to {self.tree.ranks - 1}, but there are {vocabulary} tokens: "
                "leave its widest branches out"
            )
        self.tree.levels(device)

    def behind(self, model: DraftModel, others: int = 0) -> int:
        """Committed tokens that the model lacks at most when it is asked again.

        Of its own last chain it has not read the last step's tokens, and of the target's round the correction.
        Of a tree only the first chain of nodes lies where committed tokens do. Where a draft of up to ``others``
        nodes may have been verified in place of its own, it has read none of it.
        """
        remembers = model.remembers and self.is_chain
        own = (self.length - 1) % self.streams.tokens_per_step + 1 if remembers else self.length
        return max(own, others) + 1

    def draft(self, model: DraftModel, context: Context, noise: Noise, vocabulary: int) -> Draft:
        """Draft with a model, no deeper than the rows have room for unless nodes are chosen: see ``_length``."""
        length = self._length(context.depth)
        if length < 1:
            return Draft.empty(context.lengths)
        behind = self.behind(model, context.others)
        roots = Roots.committed(model, context, vocabulary, behind, chain=self.is_chain)
        return self._grown(model, roots, noise, length, vocabulary)

    def look(self, model: DraftModel, context: Context, window: Draft, vocabulary: int) -> Tensor:
        """Read a window; logits [B, M, V]."""
        waits, nodes = self.behind(model) if context.static else None, (window.tokens, window.parents)
        one = window.fanout == 1
        scores = model.advance(
            context.tokens, context.lengths, nodes, behind=waits, chain=one, reads=context.reads
        )
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
        if self.tree is not None:
            return self.tree.grow(model, roots, length, vocabulary)
        if self.width == 1:
            return chain(model, roots, noise, length, vocabulary, self.streams, self.confidence)
        return top_k_tree(model, roots, length, self.width, self.nodes, vocabulary)
