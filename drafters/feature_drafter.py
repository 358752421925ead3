"""Drafting with a head that reads states of the target.

B rows, M = N + 1 places of a window, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from drafters.confidence import Confidence
from drafters.feature import FeatureHead, FeatureModel, FeatureNetwork
from drafters.fitting import fitted
from drafters.shape import Shape
from drafters.static_tree import StaticTree
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Tap, Want


class FeatureDrafter:
    """Drafts with a head over the target's states, its embedding and, where the head has none, its LM head.

    Args:
        head: its weights; they are copied where the target is on another device or of another type.
        length, width, nodes, tree, confidence: see ``ModelDrafter``.

    Raises:
        ValueError: what ``ModelDrafter`` refuses, or (when decoding begins) a head for another target.
    """

    static = True
    kind: type[FeatureModel] = FeatureModel

    def __init__(
        self,
        head: FeatureHead,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        self.head, self.shape = head, Shape.asked(length, width, nodes, tree, confidence)
        self.model: FeatureModel | None = None
        self._taps: tuple[Tap, ...] = ()

    @property
    def wants(self) -> tuple[Want, ...]:
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
        return self.shape.fanout

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the last generation. Raises ValueError where the head does not fit the target."""
        if target.model is None:
            raise ValueError(
                "the target's embedding and head are out of this drafter's reach: keep it in the target's process"
            )
        network = target.model.network
        if self.model is None or not self.model.serves(network):
            self.head.check(network)
            self._taps, self.model = (
                self.head.taps(network.depth),
                self.kind(FeatureNetwork(fitted(self.head, network), network)),
            )
        self.shape.prepare(network.vocab_size, network.device)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        self._model.see(context.advice)
        return self.shape.draft(self._model, context, noise, self._model.vocab_size)

    def look(self, context: Context, window: Draft) -> Tensor:
        """See ``ModelDrafter``."""
        self._model.see(context.advice)
        return self.shape.look(self._model, context, window, self._model.vocab_size)

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        """See ``ModelDrafter``."""
        return self.shape.resume(self._model, context, window, own_BMV, noise, self._model.vocab_size)

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """See ``ModelDrafter``."""
        return self.shape.branch(self._model, context, window, outcomes, noise, self._model.vocab_size)

    @property
    def _model(self) -> FeatureModel:
        if self.model is None:
            raise RuntimeError("draft comes after begin")
        return self.model
