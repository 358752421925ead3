"""The law of the accepted length against coin tosses and against what a generation measures."""

from __future__ import annotations

from itertools import product
from math import inf, isclose, prod

import pytest

from specdec.metrics import Position
from specdec.planner import Acceptance

MEASURED = (0.9, 0.7, 0.8, 0.4)


def tosses(rates):
    """(accepted length, probability) of every row of coins, by enumeration."""
    for coins in product([True, False], repeat=len(rates)):
        length = (*coins, False).index(False)
        yield length, prod(rate if coin else 1 - rate for coin, rate in zip(coins, rates, strict=True))


@pytest.mark.parametrize("window", range(5))
@pytest.mark.parametrize("rates", [MEASURED, (0.6,) * 4, (1.0, 1.0, 0.0, 0.5), (0.0,) * 4])
def test_outcomes_are_those_of_coins(rates, window):
    outcomes = Acceptance(rates).outcomes(window)
    expected = [0.0] * (window + 1)
    for length, share in tosses(rates[:window]):
        expected[length] += share
    assert outcomes == pytest.approx(expected)
    assert Acceptance(rates).committed(window) == pytest.approx(
        sum((length + 1) * share for length, share in tosses(rates[:window]))
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_committed_tokens_in_closed_form(alpha):
    for window in range(12):
        expected = (1 - alpha ** (window + 1)) / (1 - alpha)
        assert Acceptance.iid(alpha).committed(window) == pytest.approx(expected)


def test_hits_weigh_as_often_as_their_length_occurs():
    hits = (0.1, 0.5, 0.9)
    expected = sum(hits[length] * share for length, share in tosses(MEASURED[:2]))
    assert Acceptance(MEASURED).hit_rate(2, hits) == pytest.approx(expected)
    assert not isclose(expected, sum(hits) / 3, abs_tol=0.05)  # a plain mean would be seen
    assert Acceptance(MEASURED).hit_rate(2, 0.4) == pytest.approx(0.4)


def test_from_what_a_generation_measured():
    measured = Acceptance.of([Position(10, 10, 8), Position(10, 8, 2), Position(3, 0, 0), Position(3, 1, 1)])
    assert measured.by_depth == (0.8, 0.25)
    with pytest.raises(ValueError, match="to depth 2 and is needed at 3"):
        measured.committed(3)


def test_limits():
    assert Acceptance.iid(0.8).limit == pytest.approx(5)
    assert Acceptance.iid(1.0).limit == inf
    assert Acceptance((0.5, 0.5)).limit == pytest.approx(1.75)
    assert Acceptance((0.5,), beyond=0.8).limit == pytest.approx(Acceptance((0.5,), beyond=0.8).committed(200))
    assert Acceptance((0.0,), beyond=1.0).limit == 1


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 80, float("nan")])
def test_what_is_no_probability_is_refused(alpha):
    for build in (lambda: Acceptance.iid(alpha), lambda: Acceptance((0.5, alpha))):
        with pytest.raises(ValueError, match="accepted / tested"):
            build()
    with pytest.raises(ValueError, match="hit rate must be a probability"):
        Acceptance.iid(0.5).hit_rate(1, alpha)


def test_other_input_that_is_refused():
    with pytest.raises(ValueError, match="give α, or measure"):
        Acceptance(())
    with pytest.raises(ValueError, match="give α, or measure"):
        Acceptance.of([])
    for window in (-1, 1.5, inf):
        with pytest.raises(ValueError, match="whole number of at least 0"):
            Acceptance.iid(0.5).committed(window)
    for hits in ((), (0.5, 0.5), (0.5,) * 4):
        with pytest.raises(ValueError, match="give 3, one for each accepted length"):
            Acceptance.iid(0.5).hit_rate(2, hits)
