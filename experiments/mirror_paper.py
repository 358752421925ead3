"""Four schedules in the setting of Mirror Speculative Decoding: ``python -m experiments.mirror_paper``.

Tokens come from a tiny synthetic pair of a chosen agreement, time from ``specdec.channel.Simulated`` and the costs
of ``experiments.mirror_costs``. Speedups over plain decoding stand beside the published ones (Spec-Bench,
Qwen3-14B, temperature 0).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

import specdec
from drafters import NullDrafter
from drafters.synthetic import SyntheticDrafter
from experiments.folder import write_json
from experiments.mirror_costs import ASSUMPTIONS, BRANCHES, EXIT, TOP, WINDOW, fitted, needed, paper_costs
from experiments.pipeline_study import Unsure
from experiments.provenance import provenance
from specdec import Metrics
from specdec.channel import Simulated
from specdec.exit import Exit
from specdec.forecast import EarlyExitTopK
from specdec.overlap import Overlap
from specdec.planner import Acceptance, Branching, Costs, mirror, serial
from specdec.protocols import Forecast
from verifiers import FullVerifier

PAIR, PROMPT = "synthetic/tiny", [5]
VANILLA, OURS = "SD+AR", "Mirror+streaming"  # the two of which there are published numbers
PUBLISHED = {  # task: vanilla SD, Mirror-SD
    "translation": (2.34, 4.13),
    "summarization": (1.76, 3.07),
    "qa": (1.81, 3.18),
    "math": (2.80, 5.32),
    "rag": (2.02, 3.49),
    "multi-turn": (2.07, 3.70),
}


@dataclass(frozen=True)
class Setting:
    """What the paper leaves open.

    Attributes:
        flat: whether 64 branches of the drafter cost what one does.
        spoiled: share of states in which the early exit is wrong.
    """

    flat: bool
    spoiled: float


@dataclass(frozen=True)
class Measured:
    """One schedule on one task. ``law`` is the speedup that the planner has for this acceptance and hit rate."""

    speedup: float
    law: float
    tokens_per_round: float
    hit_rate: float | None
    hidden: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, print a table per setting, write the JSON."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parsed(given)
    verifier = FullVerifier(PAIR, dtype="float32", device="cpu")
    command = shlex.join(["python", "-m", "experiments.mirror_paper", *given])
    origin = {**provenance([], verifier), "command": command, "clock": "virtual"}
    plain = specdec.generate(verifier, NullDrafter(), PROMPT, options.new_tokens).row()
    console, found = Console(width=110), []
    for setting in (Setting(cost == "flat", share) for cost in options.branches for share in options.spoiled):
        tasks = {task: studied(verifier, task, setting, options, plain) for task in options.tasks}
        found.append({**asdict(setting), "tasks": tasks, **summary(tasks)})
        console.print(table(setting, tasks))
    write_json(options.out, {**origin, **described(options), "settings": found})


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--agreement", type=share, help="of the drafter; else fitted to vanilla SD, task by task")
    parser.add_argument("--tokens-per-step", type=float, default=2.8, help="of the streaming drafter")
    parser.add_argument("--branches", nargs="+", choices=("flat", "measured"), default=["flat", "measured"])
    parser.add_argument("--spoiled", nargs="+", type=share, default=[0.0, 0.3], help="share of wrong exits")
    parser.add_argument("--new-tokens", type=int, default=512, help="512 are the pair's whole vocabulary")
    parser.add_argument("--out", type=Path, default=Path("mirror.json"))
    return parser.parse_args(arguments)


def share(text: str) -> float:
    """A part of all. Raises ValueError unless it is from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"a share must be from 0 to 1, not {text}")
    return value


def schedules(setting: Setting, tokens_per_step: float) -> Iterator[tuple[str, Costs, Forecast | None]]:
    """Both ways to draft, in turns and ahead, with the paper's γ, κ and E."""
    exit = Exit(None, TOP, Unsure(setting.spoiled) if setting.spoiled else None)
    drafts = {"AR": 1.0, "streaming": tokens_per_step}
    for name, forecast in (("SD", None), ("Mirror", EarlyExitTopK(exit, branches=None))):
        for kind, per_step in drafts.items():
            yield f"{name}+{kind}", paper_costs(per_step, setting.flat), forecast


def studied(
    verifier: FullVerifier, task: str, setting: Setting, options: argparse.Namespace, plain: list[int]
) -> dict[str, Any]:
    """All schedules on a drafter as good as the paper's is on a task."""
    vanilla, published = PUBLISHED[task]
    agreement = options.agreement
    if agreement is None:
        agreement = fitted(paper_costs(1.0, setting.flat), vanilla)
    drafter = SyntheticDrafter(PAIR, agreement, WINDOW, dtype="float32", device="cpu")
    found = {}
    for name, costs, forecast in schedules(setting, options.tokens_per_step):
        result = specdec.generate(
            verifier, drafter, PROMPT, options.new_tokens, forecast=forecast, channel=Simulated(costs)
        )
        if result.row() != plain or result.metrics.faults:
            raise RuntimeError(f"{name} on {task} differs from plain decoding, or was at fault: this is a bug")
        found[name] = measured(result, costs)
    last = found[OURS]
    costs = paper_costs(options.tokens_per_step, setting.flat)
    return {
        "agreement": agreement,
        "published": {VANILLA: vanilla, OURS: published},
        "schedules": {name: asdict(one) for name, one in found.items()},
        "agreement_needed": needed(costs, published, last.hit_rate or 0.0),
    }


def measured(result: specdec.Result, costs: Costs) -> Measured:
    """The figures of a run, and what the law has for it."""
    metrics, overlap = result.metrics, Overlap.of(result.trace)
    tokens = sum(entry.committed for entry in result.trace.rounds[1:])
    timing = law(metrics, costs)
    return Measured(
        speedup=costs.plain * tokens / (1e3 * overlap.seconds),
        law=costs.plain / timing,
        tokens_per_round=metrics.mean_accepted_tokens,
        hit_rate=metrics.hit_rate,
        hidden=metrics.hidden,
    )


def law(metrics: Metrics, costs: Costs) -> float:
    """Milliseconds per token by the planner, for the acceptance and the hit rate of a run."""
    acceptance = Acceptance.of(metrics.positions)
    if metrics.hit_rate is None:
        return serial(costs, acceptance, WINDOW).ms_per_token
    return mirror(costs, acceptance, WINDOW, Branching(BRANCHES, metrics.hit_rate, EXIT)).ms_per_token


def summary(tasks: dict[str, Any]) -> dict[str, Any]:
    """Means over the tasks, and on how many of them the schedules come in the paper's order."""
    speeds = [[one["speedup"] for one in task["schedules"].values()] for task in tasks.values()]
    names = list(next(iter(tasks.values()))["schedules"])
    return {
        "mean": dict(zip(names, map(mean, zip(*speeds, strict=True)), strict=True)),
        "published_mean": {
            name: mean(task["published"][name] for task in tasks.values()) for name in (VANILLA, OURS)
        },
        "ordered_as_published": [sum(row == sorted(set(row)) for row in speeds), len(speeds)],
    }


def described(options: argparse.Namespace) -> dict[str, Any]:
    """What was assumed."""
    both = {kind: paper_costs(1.0, kind == "flat") for kind in ("flat", "measured")}
    return {
        "what": "Predicted speedups over plain decoding in the paper's setting. No time in here was taken.",
        "assumptions": ASSUMPTIONS,
        "window": WINDOW,
        "top": TOP,
        "exit": EXIT,
        "tokens_per_step": options.tokens_per_step,
        "costs_ms": {kind: asdict(costs) for kind, costs in both.items()},
    }


def table(setting: Setting, tasks: dict[str, Any]) -> Table:
    """One row per task; in brackets what the paper says."""
    cost = "cost what one does" if setting.flat else "cost what was measured"
    made = Table(
        title=f"{BRANCHES} branches {cost}, exit wrong in {setting.spoiled:.0%} of the states",
        caption=f"virtual time; in brackets the paper's; needed: the agreement that would give the paper's {OURS}",
    )
    first = next(iter(tasks.values()))
    for head in ("task", "agreement", *first["schedules"], "needed"):
        made.add_column(head, justify="left" if head == "task" else "right")
    for name, task in tasks.items():
        cells = [f"{one['speedup']:.2f}{said(task, schedule)}" for schedule, one in task["schedules"].items()]
        made.add_row(
            name,
            f"{task['agreement']:.3f}",
            *cells,
            "–" if task["agreement_needed"] is None else f"{task['agreement_needed']:.3f}",
        )
    return made


def said(task: dict[str, Any], schedule: str) -> str:
    """The published speedup, where there is one."""
    published = task["published"].get(schedule)
    return "" if published is None else f" ({published:.2f})"


if __name__ == "__main__":
    main()
