"""EAGLE-3: a layer over three states of the target drafts, and goes on with its own (arXiv 2503.01840)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from drafters.confidence import Confidence
from drafters.eagle3_head import Eagle3Head
from drafters.feature_drafter import FeatureDrafter
from drafters.static_tree import StaticTree


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
