"""From generations to figures: every arm once per repeat, medians, and what the parts predict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch

from experiments.arms import PLAIN
from experiments.bench_arms import BenchArm, Sample, Usage, measured
from experiments.bench_peers import PeerArm
from experiments.bench_steps import Curve, text

log = logging.getLogger(__name__)

DEFINITIONS = {
    "wall_ms_per_token": "wall time of the whole generation, prefill included, per new token",
    "decode_ms_per_token": "the same over the steady rounds: behind both prefills, and none that the end cuts",
    "tau": "tokens committed per steady round, pooled over the repeats",
    "target_ms": "T, verification per steady round, acceptance and commit included on a GPU",
    "draft_ms": "D, drafting per steady round, all steps of the drafter together",
    "wait_ms": "o, what is left of a round: on a GPU it waits for the host",
    "speedup": "decode_ms_per_token of plain over that of the arm",
    "wall_speedup": "wall_ms_per_token of plain over that of the arm",
    "predicted": "tau * (T + o of plain) / (D + T + o)",
    "predicted_from_target": "tau * T of plain / (D + T + o)",
    "predicted_from_parts": "tau * T(1) / (D(k) + T(k + 1) + o), with T and D from the curves",
    "tokens_equal_plain": "whether every token of every repeat is plain's, as far as the arm went",
    "first_seconds": "the first generation: kernels are compiled and rounds recorded",
    "reserved_bytes": "what PyTorch holds after the arm's first generation, that of all arms before it included",
    "overhead": "what is held after plain and one drafting arm beyond weights and caches, relative to those",
    "rows": "wall time per new token of all rows, prefill included: in one batch, and one after another",
    "peak_bytes": "most memory during a generation, models included (on a CPU: of the process so far)",
    "floor_ms": "weights of the linear layers and keys and values of the context, over the copy bandwidth",
}


@dataclass(eq=False)
class Record:
    """All generations of one arm, the first one (not timed) aside."""

    arm: BenchArm
    first_seconds: float | None = None
    reserved_bytes: int | None = None
    peak_bytes: int = 0
    samples: list[Sample] = field(default_factory=list)

    def add(self, sample: Sample, usage: Usage) -> None:
        """Note a generation; of the first only how long it took, and what is kept from then on."""
        self.peak_bytes = max(self.peak_bytes, usage.peak)
        if self.first_seconds is None:
            self.first_seconds, self.reserved_bytes = sample.seconds, usage.reserved
        else:
            self.samples.append(sample)


@dataclass(frozen=True)
class Figures:
    """One arm in numbers; see ``DEFINITIONS``. None where nobody can know or the arm does not speculate."""

    name: str
    length: int
    repeats: int
    new_tokens: int
    wall_ms_per_token: float
    decode_ms_per_token: float
    round_ms: float
    tau: float
    target_ms: float | None
    draft_ms: float | None
    wait_ms: float | None
    tokens_equal_plain: bool
    first_seconds: float
    reserved_bytes: int | None
    peak_bytes: int
    speedup: float
    wall_speedup: float
    predicted: float | None = None
    predicted_from_target: float | None = None
    predicted_from_parts: float | None = None


def take_turns(
    arms: Sequence[BenchArm], tokens: int, repeats: int, vocabulary: int, device: torch.device
) -> tuple[list[Record], dict[str, str]]:
    """Every arm once untimed, then every arm once per repeat, each repeat on a prompt of its own.

    Returns:
        the records, and why an arm of another library was left out.
    """
    records, skipped = [Record(arm) for arm in arms], dict[str, str]()
    for turn in range(1 + repeats):
        for record in list(records):
            name = record.arm.name
            try:
                record.add(*measured(record.arm, text(vocabulary, tokens, turn), device))
            except Exception as error:  # whatever it is, it is the other library's to mend
                if not isinstance(record.arm, PeerArm):
                    raise
                skipped[name] = f"{type(error).__name__}: {error}".split("\n")[0]
                log.warning("%s is left out: %s", name, skipped[name], exc_info=error)
                records.remove(record)
    return records, skipped


def figures(records: Sequence[Record], target: Curve, draft: Curve) -> list[Figures]:
    """The figures of every arm, plain decoding first.

    Args:
        records: plain decoding's first.
        target, draft: the curves that predictions come from.
    """
    plain = records[0]
    assert plain.arm.name == PLAIN
    return [figured(record, plain, target, draft) for record in records]


def figured(record: Record, plain: Record, target: Curve, draft: Curve) -> Figures:
    """The figures of one arm."""
    wall, decode = per_token(record)
    plain_wall, plain_decode = per_token(plain)
    windows = [sample.window for sample in record.samples]
    known, plain_known = parts(record), parts(plain)
    tau = sum(window.tokens for window in windows) / sum(window.rounds for window in windows)
    return Figures(
        name=record.arm.name,
        length=record.arm.length,
        repeats=len(windows),
        new_tokens=len(record.samples[0].tokens),
        wall_ms_per_token=wall,
        decode_ms_per_token=decode,
        round_ms=median(1e3 * window.seconds / window.rounds for window in windows),
        tau=tau,
        **dict(zip(("target_ms", "draft_ms", "wait_ms"), known or (None, None, None), strict=True)),
        tokens_equal_plain=all(map(agrees, record.samples, plain.samples)),
        first_seconds=record.first_seconds or 0.0,
        reserved_bytes=record.reserved_bytes,
        peak_bytes=record.peak_bytes,
        speedup=plain_decode / decode,
        wall_speedup=plain_wall / wall,
        **predictions(record.arm.length, tau, known, plain_known, target, draft),
    )


def fastest(records: Sequence[Record]) -> Any:
    """The arm that takes least time per token."""
    return min(records, key=lambda record: per_token(record)[1]).arm


def raw(record: Record) -> list[dict[str, Any]]:
    """What was measured, ready for JSON; of the tokens their number."""
    return [asdict(sample) | {"tokens": len(sample.tokens)} for sample in record.samples]


def per_token(record: Record) -> tuple[float, float]:
    """Milliseconds per new token, medians: with prefill, and of the steady part."""
    wall = median(1e3 * sample.seconds / len(sample.tokens) for sample in record.samples)
    return wall, median(1e3 * sample.window.seconds / sample.window.tokens for sample in record.samples)


def parts(record: Record) -> tuple[float, float, float] | None:
    """T, D and o of a round in milliseconds, medians; None where nobody looked."""
    rounds = []
    for window in (sample.window for sample in record.samples):
        if window.target is None or window.draft is None:
            return None
        spent = (window.target, window.draft, window.seconds - window.target - window.draft)
        rounds.append([1e3 * seconds / window.rounds for seconds in spent])
    target, draft, wait = (median(column) for column in zip(*rounds, strict=True))
    return target, draft, wait


def agrees(sample: Sample, plain: Sample) -> bool:
    """Whether tokens are plain's, as far as both go."""
    return all(mine == its for mine, its in zip(sample.tokens, plain.tokens, strict=False))


def predictions(
    length: int,
    tau: float,
    known: tuple[float, float, float] | None,
    plain: tuple[float, float, float] | None,
    target: Curve,
    draft: Curve,
) -> dict[str, float | None]:
    """Speedups that the parts of a round lead one to expect, see ``DEFINITIONS``; none without a drafter."""
    if not length or known is None or plain is None:
        return {}
    wait = known[2]
    return {
        "predicted": tau * (plain[0] + plain[2]) / sum(known),
        "predicted_from_target": tau * plain[0] / sum(known),
        "predicted_from_parts": tau * target.at(1) / (draft.at(length) + target.at(length + 1) + wait),
    }
