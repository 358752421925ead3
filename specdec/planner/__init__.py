"""The latency law as a program: from measured costs and acceptance to milliseconds per token and the best plan."""

from specdec.planner.acceptance import Acceptance
from specdec.planner.branching import Branching
from specdec.planner.collectives import Link
from specdec.planner.costs import Costs
from specdec.planner.curve import Curve
from specdec.planner.plan import Plan, best_of_each, rank
from specdec.planner.schedules import Timing, ceiling, enumeration, mirror, mirror_beside, pearl, plain, serial

__all__ = [
    "Acceptance",
    "Branching",
    "Costs",
    "Curve",
    "Link",
    "Plan",
    "Timing",
    "best_of_each",
    "ceiling",
    "enumeration",
    "mirror",
    "mirror_beside",
    "pearl",
    "plain",
    "rank",
    "serial",
]
