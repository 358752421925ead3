"""Drafting with a head that fills a block of tokens at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drafters.block import BlockHead, BlockModel
from drafters.confidence import Confidence
from drafters.fitting import fitted
from drafters.shape import Shape
from drafters.state_drafter import StateDrafter
from drafters.static_tree import StaticTree
from specdec.runtime.huggingface import Network


class BlockDrafter(StateDrafter[BlockHead, BlockModel]):
    """Drafts a whole block in one forward of a head over the target's states, its embedding and its LM head.

    The law of a place depends on what is committed, never on the other drafted tokens: each token of a chain is
    drawn from its own law, which goes along, and a tree takes the likeliest tokens of each place. It cannot
    prepare for outcomes that are not true yet, since it needs the target's states of what is committed: in the
    pipelined loop it drafts when asked.

    Args:
        head: its weights; they are copied where the target is on another device or of another type.
        length: tokens of the chain, or levels of the tree; None is all that a block has.
        width, nodes, tree, confidence: see ``ModelDrafter``.

    Raises:
        ValueError: a length, width or nodes below 1, a length beyond the block, or (when decoding begins) a head
            for another target.
    """

    def __init__(
        self,
        head: BlockHead,
        length: int | None = None,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        most = head.block_size - 1
        super().__init__(head, Shape.asked(most if length is None else length, width, nodes, tree, confidence))
        if self.shape.length > most:
            raise ValueError(
                f"length must be at most {most} for blocks of {most + 1} tokens, not {self.shape.length}"
            )

    def made(self, target: Network) -> BlockModel:
        """See ``StateDrafter``."""
        return BlockModel(fitted(self.head, target), target)
