"""EAGLE-3: a layer over three states of the target drafts, and goes on with its own (arXiv 2503.01840)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drafters.eagle3_head import Eagle3Head
from drafters.feature_drafter import FeatureDrafter


class Eagle3Drafter(FeatureDrafter):
    """Drafts with an EAGLE-3 head: a chain, a tree of ranks, or EAGLE-2's tree (arXiv 2503.01840, 2406.16858).

    Args:
        weights: a directory or file in any of the layouts of ``Eagle3Head.load``, or a head in memory.
        length, shape: width, nodes, tree and confidence too, see ``ModelDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``Eagle3Head.load`` and ``FeatureDrafter``.
    """

    def __init__(self, weights: str | Path | Eagle3Head, length: int = 5, **shape: Any) -> None:
        super().__init__(weights if isinstance(weights, Eagle3Head) else Eagle3Head.load(weights), length, **shape)
