"""Intervals of a speedup: the right width, in pairs, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from experiments.bootstrap import speedup, speedup_interval

RNG = np.random.default_rng(7)
PLAIN = list(RNG.gamma(20, 2, size=60))
OURS = [speed * factor for speed, factor in zip(PLAIN, RNG.gamma(9, 0.2, size=60), strict=True)]


def test_speedup_is_the_ratio_of_the_means() -> None:
    assert speedup([10, 30], [5, 35]) == 1  # the mean of the ratios would be 1.43


def test_agrees_with_scipy() -> None:
    theirs = bootstrap(
        (OURS, PLAIN),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert speedup_interval(OURS, PLAIN) == pytest.approx((theirs.low, theirs.high), rel=0.01)


def test_agrees_with_the_normal_law() -> None:
    """With a constant baseline the speedup is a mean, whose error is known."""
    interval = speedup_interval(OURS, [2.0] * 60)
    assert interval is not None
    mean, error = np.mean(OURS) / 2, np.std(OURS) / 2 / np.sqrt(60)
    assert interval == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), rel=0.02)


def test_pairs_stay_together() -> None:
    """A drafter that doubles every prompt's speed leaves no doubt, however much prompts differ."""
    assert speedup_interval([2 * speed for speed in PLAIN], PLAIN) == pytest.approx((2, 2))


def test_a_higher_level_is_wider() -> None:
    narrow, wide = speedup_interval(OURS, PLAIN, level=0.5), speedup_interval(OURS, PLAIN, level=0.99)
    assert narrow is not None and wide is not None
    assert wide[0] < narrow[0] < speedup(OURS, PLAIN) < narrow[1] < wide[1]


def test_is_the_same_every_time() -> None:
    assert speedup_interval(OURS, PLAIN) == speedup_interval(OURS, PLAIN)


def test_one_prompt_has_no_interval() -> None:
    assert speedup_interval([3.0], [2.0]) is None
    assert speedup_interval([3.0, 4.0], [2.0, 2.0]) == (1.5, 2.0)
