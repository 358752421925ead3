"""The published limits: a table of optima by (α, c), orderings over a grid, and the ceiling."""

from __future__ import annotations

import pytest

from specdec.planner import Acceptance, Branching, Costs, Curve, ceiling, enumeration, mirror, pearl, rank, serial

WINDOWS = range(1, 41)
# α, c: serial, PEARL at γ = 1/c, enumeration with h = 0.8 and h = 1, ceiling
TABLE = [
    (0.6, 0.05, "1.92", "1.56", "2.30", "2.50", "2.50"),
    (0.8, 0.05, "3.09", "2.76", "4.23", "4.94", "5.00"),
    (0.8, 0.1, "2.47", "2.64", "3.78", "4.46", "5.00"),
    (0.8, 0.2, "1.87", "2.28", "2.90", "3.36", "5.00"),
    (0.9, 0.1, "3.43", "4.20", "5.52", "6.51", "10.00"),
]
GRID = [(alpha / 10, c) for alpha in range(1, 10) for c in (0.02, 0.05, 0.1, 0.2, 0.5)]


def ideal(c, look=True, eta=1.0):
    """A target whose every width costs 1 ms and a drafter whose every step costs c ms."""
    drafter = Curve.flat("drafter", c, 64)
    return Costs(Curve.flat("target", 1.0, 64), drafter, tokens_per_step=eta, look=c * look)


def best(law, c, *args):
    return max(1 / law(ideal(c), *args[:1], window, *args[1:]).ms_per_token for window in WINDOWS)


@pytest.mark.parametrize(("alpha", "c", "serially", "pearls", "often", "always", "at_most"), TABLE)
def test_table(alpha, c, serially, pearls, often, always, at_most):
    iid, gamma = Acceptance.iid(alpha), round(1 / c)
    found = [
        best(serial, c, iid),
        1 / pearl(ideal(c), iid, gamma - 1).ms_per_token,
        best(enumeration, c, iid, Branching(8, 0.8)),
        best(enumeration, c, iid, Branching(8, 1.0)),
        ceiling(ideal(c), iid),
    ]
    assert [f"{value:.2f}" for value in found] == [serially, pearls, often, always, at_most]


def test_the_table_tells_gamma_from_the_window():
    found = [
        f"{1 / pearl(ideal(c), Acceptance.iid(alpha), round(1 / c)).ms_per_token:.2f}" for alpha, c, *_ in TABLE
    ]
    assert found != [row[3] for row in TABLE]


def test_the_table_tells_a_look_from_none():
    found = enumeration(ideal(0.2, look=False), Acceptance.iid(0.8), 5, Branching(8, 1.0))
    assert 1 / found.ms_per_token > 3.36 + 0.005


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.8])
def test_pearl_rises_to_its_limit_as_the_drafter_gets_fast(alpha):
    speedups = [
        1 / pearl(ideal(1 / gamma), Acceptance.iid(alpha), gamma - 1).ms_per_token for gamma in (2, 5, 10, 60)
    ]
    assert speedups == sorted(speedups)
    assert speedups[-1] == pytest.approx(1 / (1 - alpha**2), rel=1e-4)


@pytest.mark.parametrize(("alpha", "c"), GRID)
def test_pearl_in_closed_form(alpha, c):
    gamma = round(1 / c)
    speedup = 1 / pearl(ideal(1 / gamma), Acceptance.iid(alpha), gamma - 1).ms_per_token
    assert speedup == pytest.approx(1 / ((1 - alpha) * (1 + alpha / (1 - alpha**gamma))))


def test_pearl_loses_to_tuned_serial_decoding_where_acceptance_or_c_is_small():
    def gain(alpha, c):
        iid = Acceptance.iid(alpha)
        return best(pearl, c, iid) / best(serial, c, iid)

    assert gain(0.6, 0.05) < 1 and gain(0.8, 0.02) < 1
    assert gain(0.8, 0.1) > 1 and gain(0.9, 0.1) > 1


@pytest.mark.parametrize(("alpha", "c"), GRID)
def test_prepared_drafts_that_always_hit_beat_all_that_hit_less(alpha, c):
    iid = Acceptance.iid(alpha)
    always, often, never = (best(enumeration, c, iid, Branching(8, hits)) for hits in (1.0, 0.8, 0.0))
    assert always > often > never
    assert always >= max(best(pearl, c, iid), best(serial, c, iid))


@pytest.mark.parametrize("eta", [1, 2, 3.5])
@pytest.mark.parametrize("look", [True, False])
def test_nothing_exceeds_the_ceiling(look, eta):
    branchings = [Branching(8, 1.0), Branching(8, 1.0, exit=0.1)]
    tightest = 1.0
    for alpha, c in [*GRID, (1.0, 0.2), (1.0, 2.0), (0.5, 2.0), (1.0, 0.5)]:
        costs, iid = ideal(c, look, eta), Acceptance.iid(alpha)
        top = rank(costs, iid, range(1, 40), branchings)[0].speedup
        assert top <= ceiling(costs, iid) + 1e-9
        tightest = min(tightest, 1 - top / ceiling(costs, iid))
    assert tightest < 0.01  # it is met somewhere: not a bound that holds because it is loose


def test_a_correction_by_the_target_exceeds_eta_over_c_but_not_by_more_than_itself():
    free = enumeration(ideal(0.2, look=False), Acceptance.iid(1.0), 5, Branching(8, 1.0))
    assert 1 / free.ms_per_token == pytest.approx(1 + 1 / 0.2)
    assert ceiling(ideal(0.2, look=False), Acceptance.iid(1.0)) == pytest.approx(6)
    assert ceiling(ideal(0.2), Acceptance.iid(1.0)) == pytest.approx(5)


def test_ceiling_of_a_drafter_that_costs_nothing():
    assert ceiling(ideal(0.0), Acceptance.iid(0.75)) == pytest.approx(4)
    assert ceiling(ideal(0.0), Acceptance((0.5, 0.5))) == pytest.approx(1.75)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_later_exit_leaves_less_time_to_hide_the_rollout(share):
    iid = Acceptance.iid(0.8)
    early, late = (mirror(ideal(0.1), iid, 6, Branching(8, 0.8, exit)) for exit in (share, share + 0.05))
    assert late.exposed >= early.exposed
    assert (late.exposed > early.exposed) == (
        share >= 0.5
    )  # six steps of 0.1 hide behind 0.4 or more of the layers
