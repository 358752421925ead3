"""How often the r-th guess of a drafter is right, and the trees to make of it.

``python -m experiments.acceptance_by_rank drafter=medusa drafter.weights=DIR``, with values as ``specdec`` takes
them. A trace tells how deep a round was accepted, not which child it was, so ranks are measured here: the target
answers prompts by itself, and the drafter drafts at every place of a reply, given all that it wants to see of the
target (``experiments.followed``). The share of children accepted by rank, where their parent was, is what Sequoia
(arXiv 2402.12374) plans trees from, at any temperature: a child chosen for its rank is accepted as often as the
target would have drawn it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from drafters.static_tree import StaticTree
from experiments.build import check, has_target
from experiments.folder import write_json
from experiments.followed import Counts, followed, takes_trees
from experiments.provenance import provenance
from experiments.replies import ids_of, replies
from experiments.run import CONF
from specdec.planner import accepted_by, likeliest_tree
from specdec.protocols import Drafter
from verifiers import FullVerifier


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, plan, write the JSON."""
    options = parsed(arguments)
    config = composed(options.values)
    verifier: FullVerifier = instantiate(config.verifier, _convert_="all")
    drafter: Drafter = instantiate(config.drafter, _convert_="all")
    prompts = [ids_of(prompt, verifier) for prompt in instantiate(config.data, _convert_="all")]
    sampling, counts = instantiate(config.sampling), None
    for texts in replies(verifier, prompts, config.max_new_tokens, options.rows, sampling, config.seed):
        more = followed(verifier, drafter, texts, options.ranks, sampling, config.seed)
        counts = more if counts is None else counts + more
    assert counts is not None
    found = {
        **provenance(options.values, verifier),
        "command": shlex.join(["python", "-m", "experiments.acceptance_by_rank", *(arguments or sys.argv[1:])]),
        "target": config.target,
        "drafter": OmegaConf.to_container(config.drafter, resolve=True),
        "sampling": OmegaConf.to_container(config.sampling, resolve=True),
        "prompts": len(prompts),
        **shares(counts),
    }
    found["trees"] = trees(counts, options.nodes) if takes_trees(drafter) else []
    write_json(options.out, found)
    print("\n".join(lines(found)))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m experiments.acceptance_by_rank", description=__doc__)
    said = "as for specdec: drafter=…, target=…, data=…, max_new_tokens=…"
    parser.add_argument("values", nargs="*", metavar="key=value", help=said)
    parser.add_argument("--rows", type=int, default=8, help="replies at a time")
    parser.add_argument("--ranks", type=int, default=10, help="ranks that are told apart")
    parser.add_argument("--nodes", nargs="+", type=int, default=[8, 16, 32], help="sizes of trees to plan")
    parser.add_argument("--out", type=Path, default=Path("acceptance_by_rank.json"))
    return parser.parse_intermixed_args(arguments)


def composed(values: Sequence[str]) -> DictConfig:
    """The configuration of one drafter. Raises ValueError for none, for several, and for what is left open."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(values))
    if not has_target(config.drafter):
        raise ValueError("one drafter is measured at a time: pass drafter=<option>, such as drafter=early_exit")
    check(config)
    return config


def shares(counts: Counts) -> dict[str, Any]:
    """Shares by rank, ready for JSON and for the planner.

    Raises:
        ValueError: the drafter proposed nothing.
    """
    tested_D, accepted_DR = counts.tested, counts.accepted
    if not int(tested_D.sum()):
        raise ValueError("the drafter proposed nothing at any place: let it say more, or take longer replies")
    reached = int((tested_D > 0).sum())
    return {
        "tested": tested_D[:reached].tolist(),
        "acceptance": (accepted_DR.sum(0).double() / tested_D.sum()).tolist(),
        "acceptance_by_depth": (accepted_DR[:reached].double() / tested_D[:reached, None]).tolist(),
    }


def trees(counts: Counts, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The best tree of every size, no deeper than was measured, as drafters take it; none without acceptance."""
    found = shares(counts)
    acceptance, depth = found["acceptance"], len(found["tested"])
    planned = [likeliest_tree(acceptance, size, depth) for size in sizes]
    return [
        {
            "nodes": len(paths),
            "accepted": accepted_by(acceptance, paths),
            "paths": list(map(list, StaticTree.of(paths).paths)),
        }
        for paths in planned
        if paths
    ]


def lines(found: dict[str, Any]) -> list[str]:
    """For who waits: a tree is said as ``specdec`` takes it."""
    said = [f"{found['drafter']['_target_']}, {sum(found['tested'])} places, share by rank:"]
    said.append(" ".join(f"{share:.3f}" for share in found["acceptance"]))
    for tree in found["trees"]:
        paths = json.dumps(tree["paths"], separators=(",", ":"))
        said.append(f"{tree['nodes']} nodes, {tree['accepted']:.2f} accepted: drafter.tree={paths}")
    return said


if __name__ == "__main__":
    main()
