"""EAGLE-3: a layer over three states of the target drafts, and goes on with its own (arXiv 2503.01840)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from drafters.confidence import Confidence
from drafters.eagle3_head import Eagle3Head
from drafters.feature import FeatureHead
from drafters.feature_drafter import FeatureDrafter
from drafters.static_tree import StaticTree
from specdec.runtime.huggingface import Network

if TYPE_CHECKING:
    from specdec.runtime.pair import LeanPair


class Eagle3Drafter(FeatureDrafter):
    """Drafts with an EAGLE-3 head: a chain, a tree of ranks, or EAGLE-2's tree (arXiv 2503.01840, 2406.16858).

    Args:
        weights: a directory or file in any of the layouts of ``Eagle3Head.load``, or a head in memory.
        length, width, nodes, tree, confidence: see ``ModelDrafter``.
        device: see ``FeatureDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``Eagle3Head.load`` and ``FeatureDrafter``.
    """

    def __init__(
        self,
        weights: str | Path | Eagle3Head,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        head = weights if isinstance(weights, Eagle3Head) else Eagle3Head.load(weights)
        super().__init__(head, length, width, nodes, tree, confidence, device)

    def lean(self, head: FeatureHead, target: Network) -> LeanPair | None:
        """See ``FeatureDrafter``."""
        return fused(cast(Eagle3Head, head), target)


def fused(head: Eagle3Head, target: Network) -> LeanPair | None:
    """A head's layer in fused kernels; None where its target is not run by such, or they do not fit."""
    if target.lean is None:
        return None
    from specdec.runtime.pair import lean_pair  # not above: where there is no GPU, its compiler may be missing

    return lean_pair(head.midlayer, head.norm, head.lm_head, head.rotary, target)
