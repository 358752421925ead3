"""Distil what a target's last layer says into exits behind earlier ones: ``python -m experiments.train_exits``.

The target answers prompts, and a small map per exit learns to say on the state there what the target says in the
end, through the target's own norm and head, which stay as they are. P places, V vocabulary, X hidden size.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.exit_data import Pool, collect
from experiments.pace import pace
from experiments.provenance import PROJECT, device_name, revision
from experiments.requests import requests
from experiments.writing import Writing
from specdec.exit import Exit
from specdec.runtime import CachedModel
from specdec.runtime.checkpoints import SHORT_NAMES, resolve, sha256
from specdec.translator import Translator, save_translators
from verifiers import FullVerifier

TOP = 8  # tokens of the exit, in the log
WARM = 0.05  # of the steps, until the learning rate is whole
PROBES = 3  # steps that are timed before the others


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: of the optimiser.
        batch: places per step.
        rate: learning rate at its highest; it rises, then falls to zero along a cosine.
        chunk: places whose laws are held at a time.
        seed: of the places' order and of the first weights.
    """

    steps: int
    batch: int
    rate: float
    chunk: int
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the exits."""
    options = parsed(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    verifier = FullVerifier(options.target, dtype=options.dtype, device=options.device, runtime="eager")
    for layer in options.layers:  # what is wrong is said before anything is made
        Exit(layer).of(verifier.model)
    asked = list(requests(options.prompts, options.replies, options.seed))
    how = Writing(options.new_tokens, options.rows, options.longest, options.temperature, options.seed)
    pool = collect(verifier, asked, how, options.layers, say)
    say(f"{pool.train.shape[1]} places to learn from, {pool.held.shape[1]} of other prompts to check")
    exits = started(options.layers, pool.train.shape[-1], options.width, options.seed, verifier.device)
    recipe = Recipe(options.steps, options.batch, options.rate, options.chunk, options.seed)
    log = options.out.with_suffix(".jsonl")
    log.unlink(missing_ok=True)  # of another training
    for record in trained(verifier.model, pool, exits, recipe, options.check_every):
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        say(line(record))
    save_translators(options.out, exits, **facts(options, verifier, pool))
    say(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--layers", nargs="+", type=int, default=[15, 22, 26], help="behind which exits are")
    parser.add_argument("--prompts", nargs="+", type=Path, default=[], help="JSONL files, see data.jsonl")
    parser.add_argument("--out", type=Path, required=True, help=".safetensors; the log lies beside it")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=512, help="places per step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=256, help="of the gated block; 0 leaves it out")
    parser.add_argument("--replies", type=int, default=900, help="of the target, that states are taken from")
    parser.add_argument("--new-tokens", type=int, default=128, help="of a reply")
    parser.add_argument("--rows", type=int, default=32, help="replies at a time")
    parser.add_argument("--longest", type=int, default=400, help="tokens of a prompt; longer ones are left out")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the half that is sampled")
    parser.add_argument("--chunk", type=int, default=128, help="places whose laws are held at a time")
    parser.add_argument("--check-every", type=int, default=100, help="steps")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def say(text: str) -> None:
    """Tell who waits."""
    print(text, file=sys.stderr, flush=True)


def started(
    layers: Sequence[int], hidden: int, width: int, seed: int, device: torch.device
) -> dict[int, Translator]:
    """Exits that change nothing yet, in float32."""
    generator = torch.Generator().manual_seed(seed)

    def weights() -> Iterator[tuple[str, Tensor]]:
        yield from (("matrix", torch.zeros(hidden, hidden)), ("bias", torch.zeros(hidden)))
        if width:
            for name in ("gate", "value"):
                yield name, torch.randn(width, hidden, generator=generator) / math.sqrt(hidden)
            yield "out", torch.zeros(hidden, width)

    return {layer: Translator({name: w.to(device).requires_grad_() for name, w in weights()}) for layer in layers}


def trained(
    model: CachedModel, pool: Pool, exits: dict[int, Translator], recipe: Recipe, check_every: int
) -> Iterator[dict[str, Any]]:
    """Train in place; a record of every check, before the first step too."""
    weights = [weight for translator in exits.values() for weight in translator.weights.values()]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: pace(step / recipe.steps, WARM))
    generator = torch.Generator().manual_seed(recipe.seed)
    yield {"step": 0, **checked(model, pool.held, exits, recipe.chunk)}
    start = time.perf_counter()
    for step in range(1, recipe.steps + 1):
        index_P = torch.randint(pool.train.shape[1], (recipe.batch,), generator=generator)
        optimiser.zero_grad()
        loss = distilled(model, pool.train[:, index_P], exits, recipe.chunk)
        optimiser.step()
        schedule.step()
        if step == PROBES:
            left = (time.perf_counter() - start) / PROBES * (recipe.steps - PROBES) / 60
            say(f"{recipe.steps} steps of {recipe.batch} places: about {left:.1f} minutes")
        if step % check_every == 0 or step == recipe.steps:
            yield {"step": step, "loss": loss, **checked(model, pool.held, exits, recipe.chunk)}


def distilled(
    model: CachedModel, states_TPX: Tensor, exits: dict[int, Translator], chunk: int
) -> dict[int, float]:
    """Mean KL(final || exit) of every exit in nats; adds its gradient to the weights.

    In the exit's logits that gradient is the difference of both laws, so that no graph is kept through the softmax
    over the vocabulary.
    """
    size, loss = states_TPX.shape[1], dict.fromkeys(exits, 0.0)
    for part_TPX in states_TPX.split(chunk, 1):
        final_PV = laws(model, part_TPX[-1].to(model.device))
        for (layer, translator), state_PX in zip(exits.items(), part_TPX, strict=False):
            logits_PV = logits_of(model, translator(state_PX.to(model.device).float()))
            exit_PV = logits_PV.detach().float().log_softmax(-1)
            loss[layer] += divergence(final_PV, exit_PV).sum().item() / size
            gradient_PV = (exit_PV.exp_() - final_PV.exp()) / size
            logits_PV.backward(gradient_PV.to(logits_PV.dtype), inputs=list(translator.weights.values()))
    return loss


@torch.no_grad()
def checked(
    model: CachedModel, states_TPX: Tensor, exits: dict[int, Translator], chunk: int
) -> dict[str, dict[int, float]]:
    """By layer, without learning: mean KL in nats, and the final law's mass on the exit's likeliest tokens."""
    size = states_TPX.shape[1]
    kl, mass = dict.fromkeys(exits, 0.0), dict.fromkeys(exits, 0.0)
    for part_TPX in states_TPX.split(chunk, 1):
        final_PV = laws(model, part_TPX[-1].to(model.device))
        for (layer, translator), state_PX in zip(exits.items(), part_TPX, strict=False):
            exit_PV = laws(model, translator(state_PX.to(model.device).float()))
            kl[layer] += divergence(final_PV, exit_PV).sum().item() / size
            mass[layer] += final_PV.gather(-1, exit_PV.topk(TOP).indices).exp().sum().item() / size
    return {"held_kl": kl, f"held_mass_{TOP}": mass}


def laws(model: CachedModel, state_PX: Tensor) -> Tensor:
    """float32 [P, V]: log-probabilities by the target's norm and head."""
    with torch.no_grad():
        return logits_of(model, state_PX).float().log_softmax(-1)


def logits_of(model: CachedModel, state_PX: Tensor) -> Tensor:
    """[P, V]. Every place is a row of its own: no mask of places by places is made."""
    return model.network.read_out(state_PX.to(model.network.dtype)[:, None])[:, 0]


def divergence(final_PV: Tensor, exit_PV: Tensor) -> Tensor:
    """[P]: KL of two laws given by their log-probabilities."""
    return (final_PV.exp() * (final_PV - exit_PV)).sum(-1)


def line(record: dict[str, Any]) -> str:
    """A record for who waits."""
    mass = record[f"held_mass_{TOP}"]
    parts = [f"{layer}: KL {kl:.3f}, mass {mass[layer]:.3f}" for layer, kl in record["held_kl"].items()]
    return f"step {record['step']}: held out, behind layer " + "; ".join(parts)


def facts(options: argparse.Namespace, verifier: FullVerifier, pool: Pool) -> dict[str, Any]:
    """What is known of the exits, for the file. Paths stay here: of a file of prompts only the name is kept."""
    kept = {name: value for name, value in vars(options).items() if name not in ("prompts", "out")}
    return {
        "target": options.target,
        "sha256": fingerprint(options.target),
        "depth": verifier.model.network.depth,
        "recipe": {**kept, "prompts": [file.name for file in options.prompts], "places": pool.train.shape[1]},
        "device": device_name(verifier.device),
        "git": revision(PROJECT),
    }


def fingerprint(target: str) -> str:
    """sha256 of a target's weights, empty where they are not in one file of this machine."""
    if target.lower() in SHORT_NAMES:
        return SHORT_NAMES[target.lower()].sha256
    path = Path(resolve(target))
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    return sha256(files[0]) if len(files) == 1 else ""


if __name__ == "__main__":
    main()
