"""Curves through measured points, costs made of them, and collectives against devices that exchange halves."""

from __future__ import annotations

import pytest

from specdec.planner import Branching, Costs, Curve, Link

TARGET = Curve("target", [(1, 5.0), (4, 5.6), (8, 7.0)])
DRAFTER = Curve("drafter", [(1, 1.0), (8, 1.7)])


def test_a_curve_goes_through_its_points_and_straight_between_them():
    assert [TARGET(width) for width in (1, 4, 8)] == [5.0, 5.6, 7.0]
    assert [TARGET(width) for width in (2, 3, 6)] == pytest.approx([5.2, 5.4, 6.3])


@pytest.mark.parametrize("width", [0, 9, 100])
def test_a_curve_does_not_guess(width):
    with pytest.raises(
        ValueError, match=f"target was measured at widths 1 to 8 and is needed at {width}: measure"
    ):
        TARGET(width)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no measured points: measure"),
        ([(4, 1.0), (1, 1.0)], "must increase: sort"),
        ([(1, 1.0), (1, 1.1)], "must increase: sort the points and merge"),
        ([(0, 1.0)], "whole number of at least 1"),
        ([(1.5, 1.0)], "whole number of at least 1"),
        ([(1, -1.0)], "finite cost"),
        ([(1, float("nan"))], "finite cost"),
    ],
)
def test_curves_that_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        Curve("target", points)


def test_flat():
    assert {Curve.flat("target", 3.0, 9)(width) for width in range(1, 10)} == {3.0}
    assert Curve.flat("target", 3.0, 1)(1) == 3.0
    with pytest.raises(ValueError, match="measure it at 10"):
        Curve.flat("target", 3.0, 9)(10)


def test_costs():
    costs = Costs(TARGET, DRAFTER, tokens_per_step=1.4)
    assert (costs.plain, costs.ratio) == (5.0, pytest.approx(0.2))
    assert costs.verify(3) == 5.6
    assert costs.prefix(3, 0.75) == pytest.approx(4.2)
    assert costs.prefix(3, 0.75) + costs.suffix(3, 0.75) == pytest.approx(5.6)
    assert [costs.draft(tokens) for tokens in (0, 1, 7, 8)] == pytest.approx([0.0, 1.0, 5.0, 6.0])
    assert costs.draft(21) == pytest.approx(15.0) and 21 / 1.4 > 15  # rounding costs no step
    assert costs.draft(7, branches=8) == pytest.approx(8.5)


@pytest.mark.parametrize("per_step", [1.0, 1.1, 1.3, 1.7, 2.3, 3.0])
def test_steps_of_a_streaming_drafter_yield_enough_and_not_one_less(per_step):
    costs = Costs(TARGET, Curve.flat("drafter", 1.0, 1), tokens_per_step=per_step)
    for steps in range(1, 30):
        assert costs.draft(int(steps * per_step + 1e-6)) <= steps
        assert costs.draft(int(steps * per_step + 1e-6) + 1) == steps + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"look": -1.0}, "look must be a finite cost"),
        ({"host": float("inf")}, "host must be a finite cost"),
        ({"tokens_per_step": 0.0}, "at least 1"),
        ({"target": Curve("target", [(2, 5.0)])}, "needed at 1: measure it at 1"),
        ({"drafter": Curve("drafter", [(8, 5.0)])}, "needed at 1: measure it at 1"),
        ({"target": Curve("target", [(1, 0.0)])}, "must take time"),
    ],
)
def test_costs_that_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Costs(**{"target": TARGET, "drafter": DRAFTER, **change})


@pytest.mark.parametrize("exit", [-0.5, 0.0, 1.0, 18])
def test_exits_that_are_refused(exit):
    with pytest.raises(ValueError, match="pass E/N"):
        Costs(TARGET, DRAFTER).prefix(3, exit)
    with pytest.raises(ValueError, match="pass E/N"):
        Branching(8, 0.5, exit)


@pytest.mark.parametrize(
    ("branches", "hits", "message"),
    [
        (0, 0.5, "at least 1"),
        (8, 1.2, "probability"),
        (8, (0.5, -0.1), "probability"),
        (8, (), "hits are empty"),
    ],
)
def test_branchings_that_are_refused(branches, hits, message):
    with pytest.raises(ValueError, match=message):
        Branching(branches, hits)


def doublings(devices):
    """Rounds of exchange with a partner until every device has every summand."""
    known, rounds = [{device} for device in range(devices)], 0
    while any(len(has) < devices for has in known):
        known = [known[device] | known[device ^ (1 << rounds)] for device in range(devices)]
        rounds += 1
    return rounds


@pytest.mark.parametrize("devices", [2, 4, 8, 64])
def test_a_collective_waits_once_per_doubling(devices):
    link = Link(latency=0.01, per_byte=1e-6)
    assert link.allreduce(4096, devices) == pytest.approx(0.01 * doublings(devices) + 4096 * 1e-6)


def test_collectives_of_a_step():
    link, alone = Link(0.01, 1e-6), Link(0.01, 1e-6).allreduce(1000, 8)
    assert link.target_step(36, 1000, 8) == pytest.approx(72 * alone)
    assert link.rollout(5, 1000, 8) == pytest.approx(10 * alone)
    assert link.target_step(36, 1000, 1) == 0


def test_collectives_added_to_a_curve_are_right_between_its_points_too():
    link = Link(0.01, 1e-6)

    def extra(width):
        return link.target_step(36, 8192 * width, 8)

    sharded = TARGET.plus(extra)
    assert [sharded(width) for width in (1, 3, 6)] == pytest.approx(
        [TARGET(width) + extra(width) for width in (1, 3, 6)]
    )


def test_links_that_are_refused():
    with pytest.raises(ValueError, match="latency"):
        Link(-1, 0)
    with pytest.raises(ValueError, match="devices must be a whole number of at least 1"):
        Link(1, 0).allreduce(1, 0)
    with pytest.raises(ValueError, match="message"):
        Link(1, 0).allreduce(-1, 2)
