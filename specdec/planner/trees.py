"""Which token tree to draft: the ranks that are worth a node, and how many nodes (Sequoia, arXiv 2402.12374).

A node is a path of ranks: (0, 2) is the third likeliest token behind the likeliest one. a_r is the chance that the
child of rank r is the accepted one given that its parent was accepted. Children exclude one another, so a tree's
expected accepted tokens are the sum over its nodes of the product of a_r along each path.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import prod

from specdec.planner.checks import check_count, check_rate
from specdec.planner.costs import Costs
from specdec.planner.schedules import Timing, plain

Path = tuple[int, ...]

_ROUNDING = 1e-6  # rates that were measured apart from each other


@dataclass(frozen=True)
class TreePlan:
    """A tree to draft in turns with the target, and what is predicted of it.

    Attributes:
        paths: of ranks, as drafters take them; none where plain decoding is faster.
        timing: an average round, in milliseconds.
        speedup: plain decoding's milliseconds per token over this plan's.
    """

    paths: tuple[Path, ...]
    timing: Timing
    speedup: float


def accepted_by(acceptance: Sequence[float], paths: Iterable[Path]) -> float:
    """Expected accepted tokens of a tree, the correction or bonus token left out.

    Raises:
        ValueError: what ``likeliest_tree`` refuses, or a rank that was not measured.
    """
    _check(acceptance)
    paths = list(paths)
    beyond = [rank for path in paths for rank in path if rank >= len(acceptance)]
    if beyond:
        raise ValueError(
            f"acceptance was measured for ranks 0 to {len(acceptance) - 1} and is needed for {max(beyond)}: "
            "measure more ranks"
        )
    return sum(prod(acceptance[rank] for rank in path) for path in paths)


def likeliest_tree(acceptance: Sequence[float], nodes: int, depth: int | None = None) -> tuple[Path, ...]:
    """The tree of the most expected accepted tokens, by falling chance: its first n are the best tree of n nodes.

    No node is likelier than its parent. So the n likeliest of all paths are a tree, and none of n nodes can be
    better: one pass gives for every size what the paper finds by dynamic programming over sizes and fan-outs.

    Args:
        acceptance: a_0, a_1, …; later ranks are never accepted.
        nodes: how many at most. Paths that are never accepted are left out.
        depth: levels at most; None for any number.

    Raises:
        ValueError: no ranks, rates that are no probabilities or sum to more than 1, nodes or depth below 1.
    """
    _check(acceptance)
    check_count("nodes", nodes, least=1)
    if depth is not None:
        check_count("depth", depth, least=1)
    order = sorted(range(len(acceptance)), key=lambda rank: -acceptance[rank])
    found: list[Path] = []
    # The best candidate first: by chance, of equal ones the shallower, then the one of lower ranks.
    open_paths: list[tuple[float, int, Path, int, float]] = []

    def offer(above: Path, place: int, chance: float) -> None:
        if place < len(order) and chance * acceptance[order[place]] > 0:
            path = (*above, order[place])
            heappush(open_paths, (-chance * acceptance[order[place]], len(path), path, place, chance))

    offer((), 0, 1.0)
    while open_paths and len(found) < nodes:
        chance, levels, path, place, above = heappop(open_paths)
        found.append(path)
        offer(path[:-1], place + 1, above)
        if depth is None or levels < depth:
            offer(path, 0, -chance)
    return tuple(found)


def tree_timing(costs: Costs, acceptance: Sequence[float], paths: Collection[Path]) -> Timing:
    """Draft a tree, then verify it: a drafter's step per level, over the nodes that have children.

    1 + accepted tokens in sum over levels of D(nodes read for it) + T(n + 1) + o. A tree's step yields one level,
    whatever ``costs.tokens_per_step`` says.

    Raises:
        ValueError: a width that was not measured, or what ``accepted_by`` refuses.
    """
    inner = {path[:-1] for path in paths}
    widths = [sum(len(path) == level for path in inner) for level in range(max(map(len, inner), default=-1) + 1)]
    draft, verify = sum(map(costs.drafter, widths)), costs.verify(len(paths))
    return Timing(1 + accepted_by(acceptance, paths), draft + verify + costs.host, verify, draft, exposed=draft)


def best_tree(costs: Costs, acceptance: Sequence[float], sizes: Iterable[int], depths: Iterable[int]) -> TreePlan:
    """The size and depth of the fewest milliseconds per token, with the likeliest tree; of equals the smaller.

    It is the best of all trees of these sizes and depths where a drafter's step costs the same at every width;
    where wide levels cost more, the best of the likeliest ones.

    Args:
        costs: measured, in milliseconds; the target to the largest size + 1.
        acceptance: by rank.
        sizes: numbers of nodes to try.
        depths: numbers of levels to try.

    Raises:
        ValueError: no sizes or depths, or something needed that was not measured.
    """
    sizes, depths = sorted(set(sizes)), sorted(set(depths))
    if not sizes or not depths:
        raise ValueError("no trees to plan for: give one size and one depth or more, such as range(1, 33)")
    for size in sizes:
        check_count("size", size, least=1)
    whole = [likeliest_tree(acceptance, sizes[-1], depth) for depth in depths]
    trees: dict[tuple[Path, ...], Timing] = {(): plain(costs)}
    for paths in (paths[:size] for paths in whole for size in sizes):
        if paths:
            trees[paths] = tree_timing(costs, acceptance, paths)
    best = min(trees, key=lambda tree: (trees[tree].ms_per_token, len(tree)))
    return TreePlan(best, trees[best], costs.plain / trees[best].ms_per_token)


def _check(acceptance: Sequence[float]) -> None:
    if not acceptance:
        raise ValueError("acceptance is empty: measure one rank or more")
    for rank, rate in enumerate(acceptance):
        check_rate(f"acceptance of rank {rank}", rate)
    if sum(acceptance) > 1 + _ROUNDING:
        raise ValueError(
            f"acceptances of ranks sum to {sum(acceptance)}, but one child is accepted at most: "
            "pass the share of places at which each rank was the target's token"
        )
