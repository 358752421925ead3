"""How sure a speedup is: the bootstrap over prompts. P prompts, D resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 4000


def speedup(ours: Sequence[float], plain: Sequence[float]) -> float:
    """Mean tokens per second over prompts, divided by plain decoding's over the same prompts (Spec-Bench)."""
    return float(np.mean(ours) / np.mean(plain))


def speedup_interval(
    ours: Sequence[float], plain: Sequence[float], level: float = 0.95, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Percentile interval of the speedup over resampled prompts; None for fewer than two prompts.

    The two speeds of a prompt stay together. The interval tells what other prompts of the same kind might
    have given, not what another machine would.

    Args:
        ours, plain: tokens per second of each prompt.
        level: share of the resamples that the interval holds.
        draws: number of resamples.
    """
    if len(ours) < 2:
        return None
    ours_P, plain_P = np.asarray(ours), np.asarray(plain)
    which_DP = np.random.default_rng(0).integers(len(ours_P), size=(draws, len(ours_P)))
    ratio_D = ours_P[which_DP].mean(1) / plain_P[which_DP].mean(1)
    low, high = np.quantile(ratio_D, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
