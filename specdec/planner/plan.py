"""Which schedule, window, branches and exit layer the measurements speak for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from specdec.planner.acceptance import Acceptance
from specdec.planner.branching import Branching
from specdec.planner.checks import check_count
from specdec.planner.costs import Costs
from specdec.planner.schedules import Timing, enumeration, mirror, pearl, plain, serial


@dataclass(frozen=True)
class Plan:
    """A way to decode, with what is predicted of it.

    Attributes:
        schedule: "plain", "serial", "pearl", "enumeration" or "mirror".
        window: k; 0 for plain decoding.
        branching: the outcomes prepared for, where the schedule prepares several.
        timing: an average round, in milliseconds.
        speedup: plain decoding's milliseconds per token over this plan's.
    """

    schedule: str
    window: int
    branching: Branching | None
    timing: Timing
    speedup: float


def rank(
    costs: Costs, acceptance: Acceptance, windows: Iterable[int], branchings: Sequence[Branching] = ()
) -> list[Plan]:
    """Every plan within the given ranges, the fewest milliseconds per token first; of equals the shorter window.

    Args:
        costs: what was measured of the pair, in milliseconds.
        acceptance: by depth. PEARL guesses the token behind its window too: depth k + 1 has to be known.
        windows: k to try, from 1.
        branchings: to try with every window that their hit rates fit: Mirror-SD where they have an exit,
            enumeration of outcomes where not.

    Raises:
        ValueError: no windows, a branching that fits none of them, or something needed that was not measured.
    """
    windows = sorted(set(windows))
    if not windows:
        raise ValueError("no windows to plan for: give one or more, such as range(1, 9)")
    for window in windows:
        check_count("window", window, least=1)
    for branching in branchings:
        if not any(branching.fits(window) for window in windows):
            raise ValueError(
                f"{branching} fits none of the windows {windows}: plan for the one it was measured at"
            )
    plans = [Plan("plain", 0, None, plain(costs), 1.0)]
    plans += [
        Plan(schedule, window, branching, timing, costs.plain / timing.ms_per_token)
        for window in windows
        for schedule, branching, timing in _timings(costs, acceptance, window, branchings)
    ]
    return sorted(plans, key=lambda plan: plan.timing.ms_per_token)


def best_of_each(plans: Iterable[Plan]) -> list[Plan]:
    """Of ranked plans the first of each schedule, still ranked."""
    best: dict[str, Plan] = {}
    for plan in plans:
        best.setdefault(plan.schedule, plan)
    return list(best.values())


def _timings(
    costs: Costs, acceptance: Acceptance, window: int, branchings: Sequence[Branching]
) -> Iterator[tuple[str, Branching | None, Timing]]:
    yield "serial", None, serial(costs, acceptance, window)
    yield "pearl", None, pearl(costs, acceptance, window)
    for branching in branchings:
        if branching.fits(window):
            law = enumeration if branching.exit is None else mirror
            yield law.__name__, branching, law(costs, acceptance, window, branching)
