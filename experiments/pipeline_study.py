"""What overlap is worth on real devices: ``python -m experiments.pipeline_study``.

A synthetic pair, drafter and target on two devices or on one. Arms take turns on the same prompts: plain, serial
with several draft lengths, and the schedules of PEARL, SSD and Mirror with theirs. Figures come from the traces.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import specdec
from drafters import ModelDrafter, NullDrafter, SyntheticDrafter
from drafters.streaming import StreamingDrafter, Successors
from experiments.bench_peers import PeerArm, peer_arms
from experiments.bench_steps import text
from experiments.folder import write_json
from experiments.provenance import PROJECT, device_name, revision
from specdec import Result, perfetto
from specdec.exit import Exit
from specdec.forecast import AllAccepted, DraftTopK, EarlyExitTopK
from specdec.overlap import Overlap
from specdec.protocols import Drafter, Forecast
from specdec.runtime.synthetic import successors
from specdec.trace import Trace
from verifiers import FullVerifier

PEER_TOKENS = 48  # of a generation: most are slow
TWO_DEVICES = ("economize-sync", "economize-async")


@dataclass(frozen=True)
class Arm:
    """One way to decode, in one configuration."""

    schedule: str
    agreement: float | None
    length: int
    tokens_per_step: int
    forecast: Forecast | None
    drafter: Drafter


@dataclass(frozen=True)
class Unsure:
    """A translator that spoils a share of the states, chosen by the states themselves: an exit of known worth."""

    share: float

    def __call__(self, state: Tensor) -> Tensor:
        """[..., hidden] to the same, turned around where the exit is to be wrong."""
        first = state[..., :1] / state.float().square().mean(-1, keepdim=True).sqrt()
        limit = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - self.share)).item()
        return torch.where(first > limit, -state, state)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the JSON."""
    options = parsed(arguments)
    verifier = FullVerifier(options.target, dtype=options.dtype, device=options.devices[0])
    made = list(arms(options))
    samples: dict[int, list[dict[str, Any]]] = defaultdict(list)
    traces: dict[int, Trace] = {}
    for repeat in range(-2, options.repeats):  # the first two make recordings
        for index, arm in enumerate(made):
            result = generated(verifier, arm, options, repeat)
            if repeat >= 0:
                samples[index].append(measured(result))
                traces[index] = result.trace
        if repeat >= 0:  # what is measured is kept, whatever comes next
            write(verifier, options, rows(made, samples))
            save_trace(options.trace, made, traces)
    others: list[dict[str, Any]] = []
    for other in peers(verifier, made, options):
        try:
            others.append(peer(verifier, other, options))
        except Exception as error:  # whatever another library raises, what is measured is kept
            print(f"{other.name} is left out: {error!r}", file=sys.stderr)
        write(verifier, options, [*rows(made, samples), *others])


def rows(made: Sequence[Arm], samples: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What was measured of every arm."""
    plain = [sample["tokens"] for sample in samples[0]]
    return [{**described(arm), **summary(samples[index], plain)} for index, arm in enumerate(made)]


def write(verifier: FullVerifier, options: argparse.Namespace, arms: list[dict[str, Any]]) -> None:
    """The JSON file."""
    write_json(options.out, {**provenance(verifier, options), "arms": arms})


def save_trace(path: Path | None, made: Sequence[Arm], traces: dict[int, Trace]) -> None:
    """What happened in the first Mirror arm's last generation, for ``experiments.timeline``."""
    if path is not None:
        index = next(index for index, arm in enumerate(made) if arm.schedule.startswith("Mirror"))
        perfetto.save(path, {made[index].schedule: traces[index]})


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="synthetic/qwen3-8b")
    parser.add_argument("--drafter", default="synthetic/qwen3-0.6b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--devices", nargs=2, default=["cuda:0", "cuda:1"], help="of target and drafter")
    parser.add_argument("--agreements", nargs="+", type=float, default=[0.8])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--serial", nargs="+", type=int, default=[4, 5, 6])
    parser.add_argument("--exits", nargs="+", type=int, default=[6])
    parser.add_argument("--spoiled", nargs="+", type=float, default=[0.0], help="share of wrong exits")
    parser.add_argument("--peers", nargs="*", default=[], help="other libraries, as in conf/bench.yaml")
    parser.add_argument("--tokens-per-step", nargs="+", type=int, default=[1], help="over 1, the drafter streams")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("pipeline.json"))
    parser.add_argument("--trace", type=Path, help="file for a trace of the first Mirror arm, to be drawn")
    return parser.parse_args(arguments)


def arms(options: argparse.Namespace) -> Iterator[Arm]:
    """All arms. Drafters of the serial loop are on the target's device."""
    yield Arm("plain", None, 0, 1, None, NullDrafter())
    for agreement in options.agreements:
        here = SyntheticDrafter(options.drafter, agreement, dtype=options.dtype, device=options.devices[0])
        beside = SyntheticDrafter(options.drafter, agreement, dtype=options.dtype, device=options.devices[1])
        for step in options.tokens_per_step:
            for length in options.serial:
                yield Arm("serial", agreement, length, step, None, drafting(here, agreement, length, step))
            for length in options.lengths:
                drafter = drafting(beside, agreement, length, step)
                for name, forecast in forecasts(options, length):
                    yield Arm(name, agreement, length, step, forecast, drafter)


def forecasts(options: argparse.Namespace, length: int) -> Iterator[tuple[str, Forecast]]:
    """The published schedules, with as many branches as there are places."""
    yield "PEARL", AllAccepted()
    # A place's likeliest token is the window's own next one, which is refused there: one per place would be PEARL.
    yield "SSD", DraftTopK(2, branches=length + 1)
    for layer in options.exits:
        for share in options.spoiled:
            name = f"Mirror E={layer}" + (f" spoiled={share}" if share else "")
            yield name, EarlyExitTopK(Exit(layer, 1, Unsure(share) if share else None))


def drafting(made: SyntheticDrafter, agreement: float, length: int, tokens_per_step: int) -> StreamingDrafter:
    """A drafter; those of one device and agreement share a model."""
    follows_V = successors(made.model.vocab_size, agreement)
    return StreamingDrafter(made.model, Successors.of(follows_V, tokens_per_step, made.model.device), length)


def peers(verifier: FullVerifier, made: Sequence[Arm], options: argparse.Namespace) -> list[PeerArm]:
    """Other libraries on the same weights; where they draft ahead, with a draft model on the other device."""
    here = next(arm.drafter for arm in made if arm.schedule == "serial")
    beside = next(arm.drafter for arm in made if arm.forecast is not None)
    assert isinstance(here, ModelDrafter) and isinstance(beside, ModelDrafter)
    return [
        arm
        for name in options.peers
        for arm in peer_arms(verifier, beside if name in TWO_DEVICES else here, [name], PEER_TOKENS, 5)
    ]


def peer(verifier: FullVerifier, arm: PeerArm, options: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds per token of another library."""
    taken = []
    for repeat in range(-1, options.repeats):
        window = arm(text(verifier.vocab_size, options.prompt_tokens, repeat + 3)).window
        taken += [1e3 * window.seconds / window.tokens] if repeat >= 0 else []
    return {"schedule": arm.name, "agreement": None, "length": arm.length, "ms_per_token": median(taken)}


def generated(verifier: FullVerifier, arm: Arm, options: argparse.Namespace, repeat: int) -> Result:
    """One generation."""
    prompt = text(verifier.vocab_size, options.prompt_tokens, repeat + 3)
    return specdec.generate(
        verifier, arm.drafter, prompt, max_new_tokens=options.new_tokens, forecast=arm.forecast
    )


def measured(result: Result) -> dict[str, Any]:
    """What it took."""
    overlap = Overlap.of(result.trace)
    return {
        "ms_per_token": 1e3 * overlap.seconds / max(1, sum(e.committed for e in result.trace.rounds[1:])),
        "tokens_per_round": result.metrics.mean_accepted_tokens,
        "tokens": result.row(),
        "faults": dict(result.metrics.faults),
        "parts_ms": parts(result.trace),
        **overlap.as_dict(),
        "rendezvous_ms": 1e3 * overlap.rendezvous / max(1, overlap.rounds),
        "exposed_ms": 1e3 * overlap.exposed / max(1, overlap.rounds),
    }


def parts(trace: Trace) -> dict[str, float]:
    """Median milliseconds of a span on each lane, and of the early exit's message after its round began."""
    lanes: dict[str, list[float]] = defaultdict(list)
    for span in trace.spans:
        lanes[span.lane].append(1e3 * span.seconds)
    starts = sorted(span.start for span in trace.spans if span.lane == "target")
    spoken = sorted(span.start for span in trace.spans if span.lane == "target.exit")
    lanes["target.exit"] = [1e3 * (said - max(at for at in starts if at <= said)) for said in spoken]
    return {lane: median(values) for lane, values in lanes.items() if values}


def summary(samples: Sequence[dict[str, Any]], plain: Sequence[list[int]]) -> dict[str, Any]:
    """Medians over the repeats, and in how many of them the tokens are those of plain decoding."""
    first = samples[0]
    numbers = [name for name, value in first.items() if isinstance(value, float | int)]
    middle = {name: median(s[name] for s in samples if s[name] is not None) for name in numbers}
    lanes = {lane: median(s["parts_ms"].get(lane, 0.0) for s in samples) for lane in first["parts_ms"]}
    equal = sum(sample["tokens"] == tokens for sample, tokens in zip(samples, plain, strict=True))
    hits = Overlap.pooled([Overlap.read(sample) for sample in samples]).as_dict()["hits"]  # by accepted length
    return {**middle, "parts_ms": lanes, "hits": hits, "faults": first["faults"], "equal": [equal, len(samples)]}


def described(arm: Arm) -> dict[str, Any]:
    """What an arm is."""
    return {name: getattr(arm, name) for name in ("schedule", "agreement", "length", "tokens_per_step")}


def provenance(verifier: FullVerifier, options: argparse.Namespace) -> dict[str, Any]:
    """Command, date, versions and devices."""
    return {
        "command": shlex.join(["python", "-m", "experiments.pipeline_study", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": revision(PROJECT),
        "torch": torch.__version__,
        "device": device_name(verifier.device),
        "devices": options.devices,
    }


if __name__ == "__main__":
    main()
