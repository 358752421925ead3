"""Drafting with a head that reads states of the target.

B rows, M = N + 1 places of a window, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from drafters.confidence import Confidence
from drafters.feature import FeatureHead, FeatureModel, FeatureNetwork
from drafters.fitting import fitted
from drafters.shape import Shape
from drafters.state_drafter import StateDrafter
from drafters.static_tree import StaticTree
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.runtime.huggingface import Network
from specdec.types import Context, Draft


class FeatureDrafter(StateDrafter[FeatureHead, FeatureModel]):
    """Drafts with a head over the target's states, its embedding and, where the head has none, its LM head.

    Args:
        head: its weights; they are copied where the target is on another device or of another type.
        length, width, nodes, tree, confidence: see ``ModelDrafter``.
        device: see ``StateDrafter``.

    Raises:
        ValueError: what ``ModelDrafter`` refuses, or (when decoding begins) a head for another target.
    """

    kind: type[FeatureModel] = FeatureModel

    def __init__(
        self,
        head: FeatureHead,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(head, Shape.asked(length, width, nodes, tree, confidence), device)

    def made(self, target: Network) -> FeatureModel:
        """See ``StateDrafter``."""
        head = fitted(self.head, target)
        fused = None if target.lean is None else getattr(head, "fused", None)
        return self.kind(FeatureNetwork(head, target, None if fused is None else fused(target)))

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
