"""What the planner's laws say of the arms that were measured: ``python -m experiments.pipeline_prediction FILE``.

FILE is what ``experiments.pipeline_study`` has written. Costs are those of ``conf/channel/simulated.yaml``; of
each arm only its tokens per round and its share of fallbacks are taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.provenance import PROJECT
from specdec.planner import Acceptance, Branching, Costs, enumeration, mirror_beside, plain, serial
from specdec.planner.schedules import Timing

DEPTH = 36  # layers of Qwen3-8B


def main(arguments: Sequence[str] | None = None) -> None:
    """Print measured and predicted milliseconds per token, arm by arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    costs = measured_costs()
    table = Table("schedule", "agreement", "window", "η", "measured", "predicted", "off by", box=None)
    for file in options.files:
        for arm, predicted in predictions(json.loads(file.read_text())["arms"], costs):
            taken = arm["ms_per_token"]
            what = (arm["schedule"], arm["agreement"], arm["length"], arm["tokens_per_step"])
            table.add_row(*map(str, what), f"{taken:.2f}", f"{predicted:.2f}", f"{predicted / taken - 1:+.1%}")
    Console().print(table)


def measured_costs() -> Costs:
    """Of the pair, as the configuration has them."""
    costs: Costs = instantiate(OmegaConf.load(PROJECT / "conf/channel/simulated.yaml").costs, _convert_="all")
    return costs


def predictions(arms: Sequence[dict[str, Any]], costs: Costs) -> Iterator[tuple[dict[str, Any], float]]:
    """Our arms, with milliseconds per token by the laws."""
    for arm in arms:
        if arm.get("tokens_per_step"):
            yield arm, timing(arm, costs).ms / arm["tokens_per_round"]


def timing(arm: dict[str, Any], costs: Costs) -> Timing:
    """An average round of an arm. Its tokens are the arm's own: short texts are luckier or less lucky."""
    window, schedule = arm["length"], arm["schedule"]
    costs = replace(costs, tokens_per_step=float(arm["tokens_per_step"]))
    if schedule == "plain":
        return plain(costs)
    acceptance = Acceptance.iid(arm["agreement"])
    if schedule == "serial":
        return serial(costs, acceptance, window)
    # The study gives every schedule but PEARL as many branches as a window has places.
    branches = 1 if schedule == "PEARL" else window + 1
    if not schedule.startswith("Mirror"):
        return enumeration(costs, acceptance, window, Branching(branches, 1 - arm["fallback"]))
    exit = int(schedule.split("=")[1].split()[0]) / DEPTH
    return mirror_beside(costs, acceptance, window, Branching(branches, 1 - arm["fallback"], exit))


if __name__ == "__main__":
    main()
