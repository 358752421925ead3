"""What an early exit knows of the target's final law: ``python -m experiments.overlap_mass``.

Omega_kappa(E) is the final law's mass on the exit's kappa likeliest tokens (Mirror Speculative Decoding,
arXiv 2510.13161), averaged over the places of replies that the target writes itself; beside it, how often the
final law's likeliest token is among them. Then, with a drafter, how often each forecast had prepared for what came
true, all of them with the same number of branches (see ``experiments.outcome_hits``), and both by position of the
window, its bonus position included.

T taps, P places, X hidden size, V vocabulary, K largest kappa.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters import EarlyExitDrafter
from experiments import data
from experiments.folder import write_json
from experiments.omega import KAPPAS, lines
from experiments.outcome_hits import forecasts, hits_of
from experiments.overlap_plot import save_curves, save_hits
from experiments.prompt import Prompt
from experiments.provenance import PROJECT, device_name, dtype_name, revision
from experiments.replies import Text, ids_of, replies, states
from specdec.exit import Exit
from specdec.runtime import CachedModel
from specdec.translator import Translator, facts, translators
from verifiers import FullVerifier

CHUNK = 128  # places whose laws are held at a time


@dataclass
class Curve:
    """Sums over places, by kappa.

    Attributes:
        layer: how many layers run before the exit.
        trained: whether a translator stands before norm and head.
        mass: of the final law on the exit's likeliest tokens.
        found: places whose likeliest final token is among them.
        places: how many.
    """

    layer: int
    trained: bool
    mass: Tensor = field(default_factory=lambda: torch.zeros(len(KAPPAS), dtype=torch.float64))
    found: Tensor = field(default_factory=lambda: torch.zeros(len(KAPPAS), dtype=torch.float64))
    places: int = 0

    def add(self, final_PV: Tensor, exit_PV: Tensor) -> None:
        """Take in places: the final law's probabilities, and the exit's logits."""
        order_PK = exit_PV.topk(min(max(KAPPAS), exit_PV.shape[-1]), -1).indices
        mass_PK = final_PV.gather(-1, order_PK).double().cumsum(-1)
        found_PK = (order_PK == final_PV.argmax(-1, keepdim=True)).cumsum(-1)
        last = [min(kappa, order_PK.shape[-1]) - 1 for kappa in KAPPAS]
        self.mass += mass_PK[:, last].sum(0).cpu()
        self.found += found_PK[:, last].sum(0).cpu()
        self.places += len(final_PV)

    def as_dict(self, depth: int) -> dict[str, Any]:
        """Means, ready for JSON."""
        return {
            "layer": self.layer,
            "share_of_depth": self.layer / depth,
            "trained": self.trained,
            "places": self.places,
            "mass": dict(zip(KAPPAS, (self.mass / self.places).tolist(), strict=True)),
            "argmax_found": dict(zip(KAPPAS, (self.found / self.places).tolist(), strict=True)),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, draw."""
    options = parsed(arguments)
    verifier = FullVerifier(options.target, dtype=options.dtype, device=options.device, runtime=options.runtime)
    prompts = [ids_of(prompt, verifier) for prompt in prompts_of(options)]
    exits = translators(options.trained) if options.trained else {}
    depth = verifier.model.network.depth
    depths = checked(options, verifier.model, exits)
    texts = replies(verifier, prompts, options.new_tokens, options.rows)
    curves = overlap(verifier.model, texts, depths, exits)
    found: dict[str, Any] = {
        **provenance(verifier, options, len(prompts)),
        "curves": [curve.as_dict(depth) for curve in curves],
    }
    title = f"{options.target}, {dtype_name(verifier)}: {len(prompts)} prompts, {curves[0].places} places"
    write_json(options.out, found)  # what is measured is kept, whatever comes next
    save_curves(options.out.with_suffix(".png"), found["curves"], title)
    found["blend_weight"] = options.weight
    found["hits"] = [hits_of(verifier, prompts, exits, layer, options) for layer in options.drafters]
    write_json(options.out, found)
    for hits in found["hits"]:
        print("\n".join(lines(hits)))
    if found["hits"]:
        save_hits(options.out.with_name(f"{options.out.stem}_hits.png"), found["hits"], title)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--spec-bench", type=Path, help="question.jsonl, or the directory that holds it")
    source.add_argument("--prompts", type=Path, help="a JSONL file; without either, the project's own")
    parser.add_argument("--limit", type=int, default=60, help="prompts, spread over the categories")
    parser.add_argument("--depths", nargs="+", default=["all"], help="layers before the exit, or all")
    parser.add_argument("--trained", help="name or file of trained exits")
    parser.add_argument("--new-tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--rows", type=int, default=8, help="replies at a time")
    parser.add_argument("--drafters", nargs="*", type=int, default=[], help="layers of early-exit drafters")
    parser.add_argument("--length", type=int, default=4, help="tokens of a draft")
    parser.add_argument("--exits", nargs="*", type=int, default=[15, 22, 26], help="layers that forecasts read")
    parser.add_argument("--budgets", nargs="+", type=int, default=[8, 16, 32], help="branches of a forecast")
    parser.add_argument("--top", type=int, default=16, help="tokens per place that a source names")
    parser.add_argument("--weight", type=float, default=0.6, help="of the exit in a blend")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--out", type=Path, default=Path("overlap_mass.json"), help="pictures lie beside it")
    return parser.parse_args(arguments)


def checked(options: argparse.Namespace, model: CachedModel, exits: Mapping[int, Translator]) -> Sequence[int]:
    """The depths of curves. Raises ValueError for what else would fail once the replies are there."""
    if options.drafters:
        arms = forecasts(exits, options.exits, options.budgets, options.top, options.weight)
        for exit in (forecast.exit for forecast in arms.values()):
            if exit is not None:
                exit.of(model)
    for layer in options.drafters:
        EarlyExitDrafter(layer, options.length)
        model.early_exit(layer)
    if options.depths == ["all"]:
        return range(1, model.network.depth)
    return [Exit(int(layer), 1).of(model) for layer in options.depths]


def prompts_of(options: argparse.Namespace) -> list[Prompt]:
    """What the target is to answer."""
    if options.spec_bench:
        return data.spec_bench(options.spec_bench, options.limit)
    return data.jsonl(options.prompts, options.limit) if options.prompts else data.demo(options.limit)


@torch.no_grad()
def overlap(
    model: CachedModel, texts: Iterable[list[Text]], depths: Sequence[int], exits: Mapping[int, Translator]
) -> list[Curve]:
    """A curve for every depth, raw, and trained where there is a translator."""
    curves = [Curve(layer, False) for layer in depths]
    curves += [Curve(layer, True) for layer in depths if layer in exits]
    taps = (*depths, model.network.depth)
    for some in texts:
        for part_TPX in states(model, some, taps).split(CHUNK, 1):
            final_PV = logits_of(model, part_TPX[-1]).softmax(-1)
            for curve in curves:
                state_PX = part_TPX[depths.index(curve.layer)]
                state_PX = exits[curve.layer](state_PX) if curve.trained else state_PX
                curve.add(final_PV, logits_of(model, state_PX))
    return curves


def logits_of(model: CachedModel, state_PX: Tensor) -> Tensor:
    """float32 [P, V] by the target's norm and head. A place is a row: no mask of places by places is made."""
    return model.network.read_out(state_PX[:, None])[:, 0].float()


def provenance(verifier: FullVerifier, options: argparse.Namespace, prompts: int) -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "command": shlex.join(["python", "-m", "experiments.overlap_mass", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": revision(PROJECT),
        "torch": torch.__version__,
        "device": device_name(verifier.device),
        "dtype": dtype_name(verifier),
        "target": options.target,
        "depth": verifier.model.network.depth,
        "prompts": prompts,
        "new_tokens": options.new_tokens,
        "exits": facts(options.trained) if options.trained else None,
    }


if __name__ == "__main__":
    main()
