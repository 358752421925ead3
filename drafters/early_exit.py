"""The target's own first layers as drafter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from drafters.confidence import Confidence
from drafters.shape import Shape
from drafters.static_tree import StaticTree
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Want


class EarlyExitDrafter:
    """Drafts with the target's first layers, its own final norm and head; no training, no extra weights.

    The layers and their keys and values are the target's own, so nothing is computed twice for committed
    tokens (Draft & Verify, Zhang et al., arXiv 2309.08168; LayerSkip, Elhoushi et al., arXiv 2404.16710,
    trains the target for it).

    Args:
        exit_layer: how many layers to run; None is half of them.
        length: tokens of the chain, or levels of the tree.
        width: children per node, and nodes that have children per level; 1 is a chain.
        nodes: most nodes of the tree; None keeps all.
        tree, confidence: see ``ModelDrafter``.

    Raises:
        ValueError: a length, width or nodes below 1, a tree that is none, what does not go together, or (when
            decoding begins) no such layer.
    """

    static = True
    borrows = True

    def __init__(
        self,
        exit_layer: int | None = None,
        length: int = 3,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        self.exit_layer, self.shape = exit_layer, Shape.asked(length, width, nodes, tree, confidence)
        self.model: CachedModel | None = None
        self._vocabulary = 0

    @property
    def wants(self) -> tuple[Want, ...]:
        """No states of the target."""
        return ()

    @property
    def identity(self) -> object:
        """What a recording may take it for: from another layer or of another shape, it drafts something else."""
        return self, self.exit_layer, self.shape

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return self.shape.fanout

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Take a view of the target's first layers. Raises ValueError where it has none within reach."""
        if target.model is None:
            raise ValueError("the target's layers are out of this drafter's reach: take one with its own model")
        self.shape.prepare(target.vocab_size, target.device)
        layers = target.model.network.depth // 2 if self.exit_layer is None else self.exit_layer
        self.model = target.model.early_exit(layers)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)
        self._vocabulary = target.vocab_size

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        return self.shape.draft(self._view, context, noise, self._vocabulary)

    def look(self, context: Context, window: Draft) -> Tensor:
        """See ``ModelDrafter``."""
        return self.shape.look(self._view, context, window, self._vocabulary)

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        """See ``ModelDrafter``."""
        return self.shape.resume(self._view, context, window, own_BMV, noise, self._vocabulary)

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """See ``ModelDrafter``."""
        return self.shape.branch(self._view, context, window, outcomes, noise, self._vocabulary)

    @property
    def _view(self) -> CachedModel:
        if self.model is None:
            raise RuntimeError("draft comes after begin")
        return self.model
