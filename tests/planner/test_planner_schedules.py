"""Every formula against the schedule played out token by token, with a wrong formula that has to be caught."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import simulated

from specdec.planner import (
    Acceptance,
    Branching,
    Costs,
    Curve,
    enumeration,
    mirror,
    mirror_beside,
    pearl,
    plain,
    serial,
)

ROUNDS = 100_000
SIGMAS = 4.5  # of six figures each in about thirty cases, chance alone takes none there
TARGET = Curve("target", [(1, 5.0), (4, 5.5), (9, 7.0)])
DRAFTER = Curve("drafter", [(1, 1.0), (16, 1.5)])
MEASURED = (0.9, 0.8, 0.75, 0.6, 0.7)
CURVES = {
    "iid": (Acceptance.iid(0.7), lambda count: [0.7] * count),
    "measured": (Acceptance(MEASURED), lambda count: MEASURED[:count]),
}
HITS = (0.1, 0.4, 0.8, 0.9, 0.95)


@pytest.fixture(params=CURVES)
def curve(request):
    return CURVES[request.param]


def costs(**kwargs):
    return Costs(TARGET, DRAFTER, **kwargs)


def agree(rounds, timing):
    return max(simulated.deviations(rounds, timing)) < SIGMAS


@pytest.mark.parametrize(("window", "per_step"), [(1, 1), (4, 1), (4, 2), (4, 3)])
def test_serial(curve, window, per_step):
    acceptance, rates = curve
    timing = serial(costs(tokens_per_step=per_step, host=0.2), acceptance, window)
    rounds = simulated.serial(
        Random(1), rates(window), ROUNDS, target=TARGET, step=1.0, per_step=per_step, host=0.2
    )
    assert agree(rounds, timing)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_pearl(curve, window):
    acceptance, rates = curve
    timing = pearl(costs(final=0.3, host=0.2), acceptance, window)
    rounds = simulated.pearl(Random(2), rates(window + 1), ROUNDS, target=TARGET, step=1.0, final=0.3, host=0.2)
    assert agree(rounds, timing)


@pytest.mark.parametrize("look", [0.0, 1.5])
@pytest.mark.parametrize("per_step", [1, 2])
def test_enumeration(curve, look, per_step):
    acceptance, rates = curve
    measured = costs(tokens_per_step=per_step, look=look, final=0.3, host=0.2)
    timing = enumeration(measured, acceptance, 4, Branching(16, HITS))
    rounds = simulated.enumeration(
        Random(3),
        rates(4),
        HITS,
        ROUNDS,
        target=TARGET,
        step=1.0,
        wide=1.5,
        look=look,
        per_step=per_step,
        final=0.3,
        host=0.2,
    )
    assert agree(rounds, timing)


@pytest.mark.parametrize("look", [0.0, 1.5, 5.0])
@pytest.mark.parametrize("exit", [0.2, 0.8])
def test_mirror(curve, look, exit):
    acceptance, rates = curve
    measured = costs(look=look, exit_head=0.4, early=0.1, final=0.3, host=0.2)
    timing = mirror(measured, acceptance, 4, Branching(16, HITS, exit))
    rounds = simulated.mirror(
        Random(4),
        rates(4),
        HITS,
        ROUNDS,
        target=TARGET,
        step=1.0,
        wide=1.5,
        share=exit,
        look=look,
        head=0.4,
        early=0.1,
        final=0.3,
        host=0.2,
    )
    assert agree(rounds, timing)


def played_serial():
    return simulated.serial(Random(5), [0.7] * 4, ROUNDS, target=TARGET, step=1.0)


def played_pearl():
    return simulated.pearl(Random(5), [0.7] * 5, ROUNDS, target=TARGET, step=1.0)


def played_enumeration():
    return simulated.enumeration(Random(5), [0.7] * 4, HITS, ROUNDS, target=TARGET, step=1.0, wide=1.5, look=1.5)


def played_mirror():
    return simulated.mirror(
        Random(5), [0.7] * 4, HITS, ROUNDS, target=TARGET, step=1.0, wide=1.5, share=0.5, early=0.1, final=0.3
    )


WRONG = {
    "no bonus token": (
        played_serial,
        lambda iid: (lambda timing: replace(timing, tokens=timing.tokens - 0.7**4))(serial(costs(), iid, 4)),
    ),
    "gamma taken for the window": (played_pearl, lambda iid: pearl(costs(), iid, 5)),
    "a miss drafts afresh before verifying": (
        played_pearl,
        lambda iid: enumeration(costs(), iid, 4, Branching(1, (0, 0, 0, 0, 0.7))),
    ),
    "accepted lengths weighted alike": (
        played_enumeration,
        lambda iid: enumeration(costs(look=1.5), iid, 4, Branching(16, sum(HITS) / 5)),
    ),
    "look forgotten": (played_enumeration, lambda iid: enumeration(costs(), iid, 4, Branching(16, HITS))),
    "misses forgotten": (
        played_mirror,
        lambda iid: mirror(costs(early=0.1, final=0.3), iid, 4, Branching(16, 1.0, 0.5)),
    ),
    "the whole target overlaps": (
        played_mirror,
        lambda iid: enumeration(costs(final=0.4), iid, 4, Branching(16, HITS)),
    ),
    "acceptance off by two hundredths": (
        played_mirror,
        lambda iid: mirror(costs(early=0.1, final=0.3), Acceptance.iid(0.72), 4, Branching(16, HITS, 0.5)),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_formula_is_caught(wrong):
    play, formula = WRONG[wrong]
    assert simulated.deviations(play(), formula(Acceptance.iid(0.7)))[-1] > 2 * SIGMAS


def test_serial_by_hand():
    timing = serial(costs(host=0.2), Acceptance.iid(0.5), 3)
    assert timing.tokens == pytest.approx(1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert timing.ms == pytest.approx(3 * 1.0 + 5.5 + 0.2)
    assert (timing.exposed, timing.target_idle, timing.drafter_idle) == pytest.approx((3.0, 3.2, 5.7))
    assert timing.overhead == pytest.approx(0.2)


def test_mirror_by_hand():
    measured = costs(exit_head=0.4, early=0.1, final=0.3, host=0.2)
    timing = mirror(measured, Acceptance.iid(1.0), 3, Branching(16, 0.75, exit=0.6))
    # layers 1..E and head 3.3 + 0.4, early 0.1, suffix 2.2 against 3 steps of 1.5, a quarter of 3 fresh steps of 1
    assert timing.ms == pytest.approx(3.7 + 0.1 + 4.5 + 0.3 + 0.75 + 0.2)
    assert timing.exposed == pytest.approx(4.5 - 2.2 + 0.75)
    assert timing.overhead == pytest.approx(0.1 + 0.3 + 0.2)
    assert timing.tokens == 4


@pytest.mark.parametrize(
    ("look", "expected"),
    [
        (0.0, 3.3 + 0.1 + 0.4 + 4.5),  # layers 1..E, early, head, then 3 steps of 1.5
        (6.0, 6.0 + 4.5),  # the look lasts longer than all that
        (None, 5.5),  # nothing is drafted for longer than the target verifies
    ],
)
def test_mirror_beside_by_hand(look, expected):
    steps = Curve.flat("drafter", 0.01, 16) if look is None else costs().drafter
    measured = replace(costs(exit_head=0.4, early=0.1, final=0.3, host=0.2), look=look or 0.0, drafter=steps)
    timing = mirror_beside(measured, Acceptance.iid(1.0), 3, Branching(16, 1.0, exit=0.6))
    assert timing.ms == pytest.approx(expected + 0.3 + 0.2)
    assert timing.target == pytest.approx(5.5)
    assert timing.exposed == pytest.approx(expected - 5.5)
    assert timing.overhead == pytest.approx(0.3 + 0.2)


def test_reading_out_beside_is_never_slower():
    for head, exit in ((0.0, 0.5), (0.4, 0.1), (2.0, 0.9)):
        measured, branching = costs(exit_head=head, early=0.1), Branching(16, HITS, exit)
        beside = mirror_beside(measured, Acceptance.iid(0.7), 4, branching)
        assert beside.ms <= mirror(measured, Acceptance.iid(0.7), 4, branching).ms + 1e-12


def test_mirror_with_an_exit_before_the_first_layer_is_enumeration():
    iid = Acceptance.iid(0.7)
    early, whole = (
        mirror(costs(), iid, 4, Branching(16, HITS, 1e-12)),
        enumeration(costs(), iid, 4, Branching(16, HITS)),
    )
    assert early.ms == pytest.approx(whole.ms) and early.exposed == pytest.approx(whole.exposed)


def test_enumeration_that_never_hits_is_serial_behind_a_wasted_overlap():
    fast = Costs(TARGET, Curve.flat("drafter", 0.5, 16), host=0.2)
    lost, plainly = (
        enumeration(fast, Acceptance.iid(0.7), 4, Branching(16, 0.0)),
        serial(fast, Acceptance.iid(0.7), 4),
    )
    assert lost.ms_per_token == pytest.approx(plainly.ms_per_token)
    assert lost.drafter == pytest.approx(2 * plainly.drafter)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_pearl_where_nothing_or_everything_is_accepted(rate):
    timing = pearl(costs(), Acceptance.iid(rate), 3)
    assert timing.tokens == (4 if rate else 1)
    assert timing.target == pytest.approx(5.5 if rate else 5.0)


def test_time_is_accounted_for():
    for timing in (
        plain(costs()),
        serial(costs(host=0.2), Acceptance(MEASURED), 4),
        pearl(costs(final=0.3, host=0.2), Acceptance(MEASURED), 4),
        mirror(costs(early=0.1, look=5.0), Acceptance(MEASURED), 4, Branching(16, HITS, 0.5)),
    ):
        assert timing.target + timing.exposed + timing.overhead == pytest.approx(timing.ms)
        assert timing.target_idle == pytest.approx(timing.exposed + timing.overhead)
        assert timing.drafter + timing.drafter_idle == pytest.approx(timing.ms)
        assert min(timing.target_idle, timing.drafter_idle, timing.overhead) >= -1e-12


def test_mirror_without_an_exit_is_refused():
    for law in (mirror, mirror_beside):
        with pytest.raises(ValueError, match="give the branching an exit"):
            law(costs(), Acceptance.iid(0.7), 4, Branching(16, 0.5))
