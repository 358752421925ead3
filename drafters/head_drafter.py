"""A drafter made of heads on the target's last hidden state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drafters.confidence import Confidence
from drafters.fitting import check_sizes, fitted
from drafters.heads import HeadModel, Heads
from drafters.shape import Shape
from drafters.static_tree import StaticTree
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Tap


class HeadDrafter:
    """Drafts with heads; see ``MedusaDrafter``, ``HydraDrafter`` and ``ReDrafter``.

    It asks for the state behind the target's last layer, and drafts from the newest that it was given. A row of
    which it was never given one gets padding.

    Args:
        heads: in the target's type and on its device they are used as they are, else copied once.
        length: tokens of a chain, or levels of a tree; None takes as many as there are heads.
        width, nodes, tree, confidence: see ``ModelDrafter``.

    Raises:
        ValueError: a length, width or nodes below 1, more levels than heads, or (when decoding begins) heads that
            are not this target's.
    """

    static = True
    borrows = True

    def __init__(
        self,
        heads: Heads,
        length: int | None,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        length = heads.levels if length is None else length
        if length is None:
            raise ValueError("these heads go on and on: say length, how many tokens to draft")
        self.heads, self.shape = heads, Shape.asked(length, width, nodes, tree, confidence)
        if heads.levels is not None and self.shape.length > heads.levels:
            raise ValueError(
                f"there are {heads.levels} heads: length must be at most that, not {self.shape.length}"
            )
        self.wants: tuple[Tap, ...] = ()
        self._model: HeadModel | None = None
        self._vocabulary = 0

    @property
    def identity(self) -> object:
        """What a recording may take it for: of another shape or for another target, it drafts something else."""
        return self, self.shape, self._model

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return self.shape.fanout

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget all states. Raises ValueError where the heads are another target's, or it is out of reach."""
        if target.model is None:
            raise ValueError(
                "the target's norm and head are out of this drafter's reach: draft in its own process"
            )
        network = target.model.network
        check_sizes(self.heads.hidden, self.heads.vocabulary, network, self.heads.target_layers)
        if self._model is None or not self._model.serves(network):
            self._model = HeadModel(fitted(self.heads, network), network)
        self.shape.prepare(target.vocab_size, network.device)
        self._model.begin(len(seq.tokens), network)
        self.wants, self._vocabulary = (self._model.tap,), target.vocab_size

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        if self._model is None:
            raise RuntimeError("draft comes after begin")
        self._model.follow(context.advice)
        return self._model.kept(self.shape.draft(self._model, context, noise, self._vocabulary))
