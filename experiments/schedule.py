"""The learning rate over a training, as a share of its highest."""

from __future__ import annotations

import math

DECAYS = ("cosine", "linear")


def rate_share(done: float, warm: float, decay: str = "cosine") -> float:
    """The share when a share of the steps is done: it rises until ``warm``, and falls to zero along a decay."""
    left = 0.5 * (1 + math.cos(math.pi * min(1.0, done))) if decay == "cosine" else 1 - min(1.0, done)
    return left * (min(1.0, done / warm) if warm else 1.0)
