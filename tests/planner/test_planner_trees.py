"""The best trees against all trees, against the paper's recursion, and against rounds that are tossed."""

from __future__ import annotations

import random
from functools import cache
from math import prod

import pytest

from specdec.planner import (
    Acceptance,
    Costs,
    Curve,
    accepted_by,
    best_tree,
    likeliest_tree,
    plain,
    serial,
    tree_timing,
)

MEASURED = (0.55, 0.2, 0.1, 0.04)
RATES = [MEASURED, (0.3, 0.3, 0.3), (0.9,), (0.1, 0.4, 0.2), (1.0, 0.0), (0.34, 0.33, 0.33)]
STEPS = Curve("drafter", [(1, 1.0), (64, 1.0)])
COSTS = Costs(Curve("target", [(1, 5.0), (4, 5.4), (8, 6.5), (16, 9.0)]), STEPS, host=0.1)


@cache
def all_trees(size, ranks, depth):
    """Every set of paths of a size that holds its beginnings, level after level of them."""
    if size == 0:
        return {frozenset()}
    grown = set()
    for tree in all_trees(size - 1, ranks, depth):
        for above in (*tree, ()):
            if len(above) < depth:
                grown |= {tree | {(*above, rank)} for rank in range(ranks)}
    return {tree for tree in grown if len(tree) == size}


def worth(rates, tree):
    return sum(prod(rates[rank] for rank in path) for path in tree)


def recursion(rates, size, depth):
    """Sequoia's own way, of a subtree with its root: b children share the rest, rank after rank."""

    @cache
    def whole(n, d):  # a node and the best n - 1 nodes below it
        return 1 + children(n - 1, 0, d - 1) if n else 0.0

    @cache
    def children(n, rank, d):
        if n == 0 or d == 0 or rank == len(rates):
            return 0.0
        return max(rates[rank] * whole(m, d) + children(n - m, rank + 1, d) for m in range(n + 1))

    return children(size, 0, depth)


def closed(paths):
    return all(len(path) == 1 or path[:-1] in paths for path in paths)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("rates", RATES, ids=str)
def test_no_tree_of_the_size_is_better(rates, depth):
    order = likeliest_tree(rates, 5, depth)
    for size in range(1, 6):
        trees = all_trees(size, len(rates), depth)
        best = max((worth(rates, tree) for tree in trees), default=worth(rates, order))
        paths = order[:size]
        assert len(set(paths)) == len(paths) and closed(paths) and max(map(len, paths)) <= depth
        assert accepted_by(rates, paths) == pytest.approx(best, abs=1e-12)
        assert likeliest_tree(rates, size, depth) == paths


@pytest.mark.parametrize("depth", [2, 4, 30])
@pytest.mark.parametrize("rates", [MEASURED, (0.3, 0.3, 0.3), (0.1, 0.4, 0.2)], ids=str)
def test_the_paper_s_recursion_finds_no_better_one(rates, depth):
    for size in (7, 16, 30):
        found = accepted_by(rates, likeliest_tree(rates, size, depth))
        assert found == pytest.approx(recursion(rates, size, depth), abs=1e-12)


def test_expected_tokens_are_those_of_tosses():
    rng, paths, rounds = random.Random(1), set(likeliest_tree(MEASURED, 12)), 40_000
    total = 0
    for _ in range(rounds):
        path = ()
        while True:
            rank = rng.choices(range(5), (*MEASURED, 1 - sum(MEASURED)))[0]
            if (*path, rank) not in paths:
                break
            path = (*path, rank)
        total += len(path)
    # Its deviation is below 1.5 tokens a round, so this is four deviations of the mean.
    assert total / rounds == pytest.approx(accepted_by(MEASURED, paths), abs=4 * 1.5 / rounds**0.5)
    assert total / rounds != pytest.approx(accepted_by(MEASURED, list(paths)[:-3]), abs=4 * 1.5 / rounds**0.5)


def test_shapes_that_are_known():
    assert likeliest_tree((0.9,), 3) == ((0,), (0, 0), (0, 0, 0))
    assert likeliest_tree((0.3, 0.25), 2) == ((0,), (1,))
    assert likeliest_tree((0.6, 0.3), 3) == ((0,), (0, 0), (1,))
    assert likeliest_tree((0.6, 0.3), 4, depth=1) == ((0,), (1,)), "there are no more"
    assert likeliest_tree((0.0, 0.5), 2) == ((1,), (1, 1)), "a rank that is never right is left out"


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_chain_is_the_serial_schedule(window):
    timing = tree_timing(COSTS, (0.7,), [(0,) * (level + 1) for level in range(window)])
    expected = serial(COSTS, Acceptance.iid(0.7), window)
    assert (timing.tokens, timing.ms) == pytest.approx((expected.tokens, expected.ms))
    assert (timing.target, timing.drafter, timing.exposed) == (expected.target, expected.drafter, expected.exposed)


def test_a_level_costs_what_its_parents_do():
    costs = Costs(COSTS.target, Curve("drafter", [(1, 1.0), (2, 3.0), (3, 7.0)]))
    paths = [(0,), (1,), (2,), (0, 0), (0, 1), (2, 0), (0, 1, 0)]
    assert tree_timing(costs, MEASURED, paths).drafter == 1.0 + 3.0 + 1.0


@pytest.mark.parametrize("step", [0.05, 0.6, 3.0])
@pytest.mark.parametrize("rates", [MEASURED, (0.3, 0.3, 0.3), (0.8, 0.1)], ids=str)
def test_no_tree_within_reach_is_faster(rates, step):
    costs = Costs(COSTS.target, Curve.flat("drafter", step, 64))
    found = best_tree(costs, rates, range(1, 6), range(1, 4))
    rivals = [tree for size in range(1, 6) for tree in all_trees(size, len(rates), 3)]
    least = min([plain(costs).ms_per_token, *(tree_timing(costs, rates, tree).ms_per_token for tree in rivals)])
    assert found.timing.ms_per_token == pytest.approx(least)
    assert found.speedup == pytest.approx(5.0 / least)


def test_the_budget_follows_the_target_s_curve():
    def size(ms_at_64):
        target = Curve("target", [(1, 5.0), (8, 5.0), (64, ms_at_64)])
        return len(
            best_tree(Costs(target, Curve.flat("drafter", 0.3, 64)), MEASURED, range(1, 64), range(1, 9)).paths
        )

    sizes = [size(ms) for ms in (5.0, 7.0, 20.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 63 and 7 <= sizes[2] < sizes[1] < 63


def test_where_drafting_does_not_pay_there_is_no_tree():
    slow = Costs(COSTS.target, Curve.flat("drafter", 20.0, 16))
    found = best_tree(slow, MEASURED, range(1, 16), range(1, 5))
    assert found.paths == () and found.speedup == 1 and found.timing == plain(slow)
    assert best_tree(COSTS, (0.0,), [3], [2]).paths == ()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: likeliest_tree((), 3), "measure one rank or more"),
        (lambda: likeliest_tree((0.5, 1.2), 3), "acceptance of rank 1 must be a probability"),
        (lambda: likeliest_tree((0.8, 0.5), 3), "sum to 1.3, but one child is accepted at most"),
        (lambda: likeliest_tree(MEASURED, 0), "nodes must be a whole number of at least 1"),
        (lambda: likeliest_tree(MEASURED, 3, 0), "depth must be a whole number of at least 1"),
        (lambda: accepted_by(MEASURED, [(4,)]), "ranks 0 to 3 and is needed for 4"),
        (lambda: best_tree(COSTS, MEASURED, [], [1]), "no trees to plan for"),
        (lambda: best_tree(COSTS, MEASURED, [0], [1]), "size must be a whole number of at least 1"),
        (
            lambda: best_tree(COSTS, MEASURED, [20], [4]),
            "measured at widths 1 to 16 and is needed at 21",
        ),
    ],
)
def test_what_cannot_be_planned(call, told):
    with pytest.raises(ValueError, match=told):
        call()
