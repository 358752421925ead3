"""The bench, the console command ``specdec-bench``: what a synthetic pair costs on this device, part by part."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from experiments.run import CONF, message

log = logging.getLogger(__name__)

PREFIX = "synthetic/"
WHOLE = ("new_tokens", "prompt_tokens", "repeats", "peer_tokens", "peer_length", "timings", "rows_tokens")


def main() -> None:
    """Run the bench that the command line describes; exit status 1 for a wrong value."""
    configured()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="bench")
def configured(config: DictConfig) -> None:
    """The bench under its configuration; raises SystemExit where its exit status is not 0."""
    found, console = HydraConfig.get(), Console(stderr=True)
    try:
        check(config)
        bench(config, list(found.overrides.task), Path(found.runtime.output_dir), console)
    except (InstantiationException, OmegaConfBaseException, OSError, ValueError) as error:
        log.debug("", exc_info=error)
        console.print(f"[bold red]error:[/] {escape(message(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


def check(config: DictConfig) -> None:
    """Raises ValueError for models that are not synthetic, and for numbers that are none."""
    for key, name in (("target", config.target), ("drafter", config.drafter.get("model"))):
        if not str(name).startswith(PREFIX):
            raise ValueError(f"{key} must be one of the {PREFIX} shapes, not {name!r}: the bench times no others")
    values = {key: [config[key]] for key in WHOLE}
    values |= {key: list(config[key]) for key in ("widths", "contexts", "drafts", "lengths", "rows")}
    for key, numbers in values.items():
        if not numbers or not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"{key} must be of whole numbers of at least 1, not {config[key]!r}")


@dataclass(frozen=True)
class Pair:
    """Target and drafter, and the seconds it took to make them."""

    verifier: Any
    drafter: Any
    seconds: float


def bench(config: DictConfig, overrides: Sequence[str], folder: Path, console: Console) -> None:
    """Measure, and write bench.json and bench.png. What is measured is written at once."""
    # Here, so that --help is answered at once: torch takes seconds to import.
    from experiments.bench_figures import fastest, figures, raw, take_turns
    from experiments.bench_plot import save_bench_plot
    from experiments.bench_rows import compare_rows
    from experiments.folder import write_json
    from experiments.stopwatch import bandwidth

    pair = load(config)
    check_contexts(config, pair)  # now, and not when all else is measured
    content, device = opening(config, overrides, pair), pair.verifier.device
    console.print(content["title"], highlight=False, markup=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)

    def note(**more: Any) -> None:
        content.update(more)
        write_json(folder / "bench.json", content)

    made, vocabulary = arms(config, pair), pair.verifier.vocab_size
    # Before all else: the first generations are to find nothing compiled.
    records, skipped = take_turns(made, config.prompt_tokens, config.repeats, vocabulary, device)
    samples = {record.arm.name: raw(record) for record in records}
    note(samples=samples, skipped=skipped, memory=memory(pair, records[1].reserved_bytes))
    tuned = [made[0], fastest(records[1 : 1 + len(config.lengths)])]
    rows = compare_rows(tuned, config.rows, config.prompt_tokens, config.rows_tokens, config.repeats)
    note(rows=[asdict(part) for part in rows])
    rate = bandwidth(device, config.copy_mib)
    targets, drafts = curves(config, pair, rate.best)
    note(
        bandwidth={**asdict(rate), "best": rate.best, "unit": "bytes read and written per second"},
        target=[asdict(curve) for curve in targets],
        drafter=[asdict(curve) for curve in drafts],
    )
    found = figures(records, targets[0], drafts[0])
    note(arms={arm.name: asdict(arm) for arm in found})
    save_bench_plot(folder / "bench.png", content["title"], targets, drafts, found)
    show(found, skipped)
    show_rows(rows)
    console.print(f"results in {folder}", highlight=False, markup=False, soft_wrap=True)


def opening(config: DictConfig, overrides: Sequence[str], pair: Pair) -> dict[str, Any]:
    """What is known before anything is measured."""
    from experiments.bench_figures import DEFINITIONS
    from experiments.folder import resolved

    return {
        "title": headline(config, pair),
        "provenance": origin(overrides, pair),
        "config": resolved(config),
        "definitions": DEFINITIONS,
        "load_seconds": pair.seconds,
    }


def memory(pair: Pair, held: int | None) -> dict[str, Any]:
    """Weights and caches, and what is held beyond them."""
    from experiments.bench_steps import cache_bytes, parameter_bytes

    models = (pair.verifier.model, pair.drafter.model)
    weights, caches = sum(map(parameter_bytes, models)), sum(map(cache_bytes, models))
    over = None if held is None else held / (weights + caches) - 1
    return {"weight_bytes": weights, "cache_bytes": caches, "reserved_bytes": held, "overhead": over}


def load(config: DictConfig) -> Pair:
    """Make both models."""
    from experiments.stopwatch import now, tidy

    start = time.perf_counter()
    verifier = instantiate(config.verifier, _convert_="all")
    drafter = instantiate(config.drafter, _convert_="all")
    seconds = now(verifier.device) - start
    tidy(verifier.device)  # what was held while weights were made says nothing of decoding
    return Pair(verifier, drafter, seconds)


def check_contexts(config: DictConfig, pair: Pair) -> None:
    """Raises ValueError where a context does not fit a model's positions."""
    longest = max(config.contexts) + max(*config.widths, *config.drafts)
    for model in (pair.verifier.model, pair.drafter.model):
        limit = model.network.max_positions
        if limit is not None and longest > limit:
            raise ValueError(f"contexts of up to {max(config.contexts)} and a step do not fit {limit} positions")


def headline(config: DictConfig, pair: Pair) -> str:
    """What runs where, in one line."""
    from experiments.provenance import device_name, dtype_name

    models = f"{config.target} with {config.drafter.model}, agreement {config.drafter.agreement}"
    where = f"{dtype_name(pair.verifier)} · {device_name(pair.verifier.device)}"
    return f"{models} (synthetic weights) · {where} · batch 1, prompt {config.prompt_tokens}, greedy"


def origin(overrides: Sequence[str], pair: Pair) -> dict[str, Any]:
    """Where the figures come from."""
    from experiments.provenance import provenance

    return {**provenance(overrides, pair.verifier), "command": shlex.join(["specdec-bench", *overrides])}


def arms(config: DictConfig, pair: Pair) -> list[Any]:
    """All arms, plain decoding first."""
    from experiments.bench_arms import our_arms
    from experiments.bench_peers import peer_arms

    ours = our_arms(pair.verifier, pair.drafter, list(config.lengths), config.new_tokens)
    names = list(config.peers or ())
    return [*ours, *peer_arms(pair.verifier, pair.drafter, names, config.peer_tokens, config.peer_length)]


def curves(config: DictConfig, pair: Pair, rate: float) -> tuple[list[Any], list[Any]]:
    """Steps of the target and chains of the drafter, at every context; ``rate`` in bytes per second."""
    from experiments.bench_steps import curve, rollout, step

    target, drafter = pair.verifier.model, pair.drafter.model
    steps = [curve(target, size, config.widths, rate, config.timings, step) for size in config.contexts]
    chains = [curve(drafter, size, config.drafts, rate, config.timings, rollout) for size in config.contexts]
    return steps, chains


def show(found: Sequence[Any], skipped: dict[str, str]) -> None:
    """Print a table."""
    head = ("ms/token", "wall", "tau", "T", "D", "o", "speedup", "parts", "first s")
    print(f"{'arm':16}" + "".join(f"{name:>10}" for name in head) + "  tokens")
    for arm in found:
        parts = (arm.decode_ms_per_token, arm.wall_ms_per_token, arm.tau, arm.target_ms, arm.draft_ms, arm.wait_ms)
        row = (*parts, arm.speedup, arm.predicted_from_parts, arm.first_seconds)
        cells = "".join(f"{'-' if value is None else format(value, '.3f'):>10}" for value in row)
        print(f"{arm.name:16}{cells}  {'equal' if arm.tokens_equal_plain else 'DIFFER'}")
    for name, reason in skipped.items():
        print(f"{name:16}left out: {reason}")


def show_rows(found: Sequence[Any]) -> None:
    """Print a line for every arm and number of rows."""
    for part in found:
        print(
            f"{part.arm:16}{part.rows:3} rows: {part.ms_per_token:.3f} ms per token of all rows, "
            f"{part.one_by_one_ms_per_token:.3f} one after another ({part.gain:.2f} times); "
            f"{part.tokens_equal} of {part.rows} rows have equal tokens"
        )


if __name__ == "__main__":
    main()
