"""The search against laws asked one by one, and choices that are known in advance."""

from __future__ import annotations

import pytest

from specdec.planner import (
    Acceptance,
    Branching,
    Costs,
    Curve,
    best_of_each,
    enumeration,
    mirror,
    pearl,
    plain,
    rank,
    serial,
)

TARGET = Curve("target", [(1, 5.1), (8, 6.0), (16, 6.6)])
DRAFTER = Curve("drafter", [(1, 1.0), (64, 1.4)])
COSTS = Costs(TARGET, DRAFTER, exit_head=0.4, host=0.1, early=0.02, final=0.02)
IID = Acceptance.iid(0.8)
FAN = Branching(32, 0.7)
BOUND = Branching(40, (0.5, 0.6, 0.7, 0.7, 0.9))
EXIT = Branching(32, 0.9, exit=0.75)
WINDOWS = range(1, 11)


def test_every_plan_once_and_the_fastest_first():
    plans = rank(COSTS, IID, WINDOWS, [FAN, BOUND, EXIT])
    expected = {("plain", 0, None): plain(COSTS)}
    for window in WINDOWS:
        expected["serial", window, None] = serial(COSTS, IID, window)
        expected["pearl", window, None] = pearl(COSTS, IID, window)
        expected["enumeration", window, FAN] = enumeration(COSTS, IID, window, FAN)
        expected["mirror", window, EXIT] = mirror(COSTS, IID, window, EXIT)
    expected["enumeration", 4, BOUND] = enumeration(COSTS, IID, 4, BOUND)
    assert len(plans) == len(expected)
    assert {(plan.schedule, plan.window, plan.branching): plan.timing for plan in plans} == expected
    times = [plan.timing.ms_per_token for plan in plans]
    assert times == sorted(times) and len(set(times)) > 30
    for plan in plans:
        assert plan.speedup == pytest.approx(5.1 * plan.timing.tokens / plan.timing.ms)


def test_best_of_each_schedule():
    plans = rank(COSTS, IID, WINDOWS, [FAN, EXIT])
    best = best_of_each(plans)
    assert sorted(plan.schedule for plan in best) == ["enumeration", "mirror", "pearl", "plain", "serial"]
    assert best[0] is plans[0]
    for plan in best:
        rivals = [other for other in plans if other.schedule == plan.schedule]
        assert plan.speedup == max(other.speedup for other in rivals)


def test_a_drafter_that_is_never_right_or_too_slow_leaves_plain_decoding():
    assert rank(COSTS, Acceptance.iid(0.0), WINDOWS, [FAN, EXIT])[0].schedule == "plain"
    slow = Costs(TARGET, Curve.flat("drafter", 20.0, 64))
    assert rank(slow, IID, WINDOWS, [FAN, EXIT])[0].schedule == "plain"


def test_the_exit_layer_trades_sharper_guesses_for_time():
    # Hit rates by depth of a raw exit on a small model: late exits know, early ones do not.
    curve = {0.5: 0.05, 0.74: 0.55, 0.87: 0.88, 0.95: 0.97}
    exits = [Branching(32, hits, exit) for exit, hits in curve.items()]

    def chosen(step):
        costs = Costs(TARGET, Curve.flat("drafter", step, 64))
        return next(plan for plan in rank(costs, IID, WINDOWS, exits) if plan.schedule == "mirror").branching.exit

    # Nothing to hide: the sharpest. Ten steps of 0.05 ms outlast the last 5 % of 6 ms, and fit into the last 13 %.
    assert chosen(0.002) == 0.95
    assert chosen(0.05) == 0.87
    assert chosen(0.3) == 0.74


def test_more_branches_pay_until_they_slow_the_drafter():
    steep = Costs(TARGET, Curve("drafter", [(1, 0.4), (16, 0.5), (64, 3.0)]))
    few, some, many = Branching(4, 0.5), Branching(16, 0.8), Branching(64, 0.85)
    best = best_of_each(rank(steep, IID, WINDOWS, [few, some, many]))
    assert next(plan for plan in best if plan.schedule == "enumeration").branching == some


def test_of_equal_plans_the_shorter_window():
    free = Costs(Curve.flat("target", 5.0, 16), Curve.flat("drafter", 0.0, 1))
    plans = rank(free, Acceptance((0.5, 0.0, 0.5, 0.5)), [3, 1, 2])
    serially = [plan.window for plan in plans if plan.schedule == "serial"]
    assert serially == [1, 2, 3]


@pytest.mark.parametrize(
    ("acceptance", "windows", "branchings", "message"),
    [
        (IID, [], [], "give one or more"),
        (IID, [0], [], "at least 1"),
        (IID, [1, 2], [BOUND], "plan for the one it was measured at"),
        (IID, [16], [], "target was measured at widths 1 to 16 and is needed at 17"),
        (IID, [4], [Branching(65, 0.5)], "drafter was measured at widths 1 to 64 and is needed at 65"),
        (Acceptance((0.8,) * 4), [4], [], "needed at 5: measure with a window of 5"),
    ],
)
def test_what_cannot_be_planned(acceptance, windows, branchings, message):
    with pytest.raises(ValueError, match=message):
        rank(COSTS, acceptance, windows, branchings)
