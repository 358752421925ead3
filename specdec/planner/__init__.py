"""The latency law as a program: from measured costs and acceptance to milliseconds per token and the best plan."""

from specdec.planner.acceptance import Acceptance
from specdec.planner.branching import Branching
from specdec.planner.collectives import Link
from specdec.planner.costs import Costs
from specdec.planner.curve import Curve
from specdec.planner.plan import Plan, best_of_each, rank
from specdec.planner.schedules import Timing, ceiling, enumeration, mirror, mirror_beside, pearl, plain, serial
from specdec.planner.trees import TreePlan, accepted_by, best_tree, likeliest_tree, tree_timing

__all__ = [
    "Acceptance",
    "Branching",
    "Costs",
    "Curve",
    "Link",
    "Plan",
    "Timing",
    "TreePlan",
    "accepted_by",
    "best_of_each",
    "best_tree",
    "ceiling",
    "enumeration",
    "likeliest_tree",
    "mirror",
    "mirror_beside",
    "pearl",
    "plain",
    "rank",
    "serial",
    "tree_timing",
]
