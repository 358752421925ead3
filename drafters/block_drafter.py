"""Drafting with a head that fills a block of tokens at once."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from drafters.block import BlockHead, BlockModel
from drafters.model import Shape
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime.parts import Parts
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Tap


class BlockDrafter:
    """Drafts a whole block in one forward of a head over the target's states, its embedding and its LM head.

    The law of a place depends on what is committed, never on the other drafted tokens: each token of a chain is
    drawn from its own law, which goes along, and a tree takes the likeliest tokens of each place. It cannot
    prepare for outcomes that are not true yet, since it needs the target's states of what is committed: in the
    pipelined loop it drafts when asked.

    Args:
        head: its weights; they are copied where the target is on another device or of another type.
        length: tokens of the chain, or levels of the tree; None is all that a block has.
        width: children per node, and nodes that have children per level; 1 is a chain.
        nodes: most nodes of the tree; None keeps all.

    Raises:
        ValueError: a length, width or nodes below 1, a length beyond the block, or (when decoding begins) a head
            for another target.
    """

    static = True

    def __init__(
        self,
        head: BlockHead,
        length: int | None = None,
        width: int = 1,
        nodes: int | None = None,
    ) -> None:
        self.head = head
        most = self.head.block_size - 1
        self.shape = Shape(most if length is None else length, width, nodes)
        if self.shape.length > most:
            raise ValueError(f"length must be at most {most} for blocks of {most + 1} tokens, not {length}")
        self.model: BlockModel | None = None
        self._parts: Parts | None = None
        self._taps: tuple[Tap, ...] = ()

    @property
    def wants(self) -> tuple[Tap, ...]:
        """States of the target, known once decoding begins."""
        return self._taps

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
        """Forget the last generation. Raises ValueError where the head does not fit the target."""
        if target.model is None:
            raise ValueError(
                "the target's embedding and head are out of this drafter's reach: keep it in the target's process"
            )
        parts = Parts.of(target.model.network)
        if self.model is None or self._parts is None or not self._parts.same(parts):
            self.head.check(parts)
            self._taps = self.head.taps(parts.depth)
            fitted: Any = parts.fitted(cast(nn.Module, self.head))
            self._parts, self.model = parts, BlockModel(fitted, parts)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        if self.model is None:
            raise RuntimeError("draft comes after begin")
        self.model.see(context.advice)
        return self.shape.draft(self.model, context, noise, self.model.vocab_size)
