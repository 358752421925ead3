"""Figures of every arm over the finished prompts, each with its definition.

All sums run over replies: one per prompt and turn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.ahead import DEFINITIONS as AHEAD
from experiments.ahead import Ahead
from experiments.arms import PLAIN
from experiments.bootstrap import speedup, speedup_interval
from experiments.journal import Entry

DEFINITIONS = {
    "tokens_per_second": "mean over prompts of new tokens / wall time, prefill included, all turns together",
    "tokens_per_second_pooled": "all new tokens / all wall time",
    "speedup": "mean tokens per second over prompts / plain decoding's over the same prompts",
    "speedup_interval": "95 % bootstrap interval of the speedup, prompts resampled",
    "speedup_pooled": "tokens_per_second_pooled / plain decoding's",
    "speedup_mean_of_ratios": "mean over prompts of tokens per second / plain decoding's",
    "accepted.tokens_per_round": (
        "tokens committed per decoding round, pooled over all rounds, correction or bonus token included, "
        "prefill excluded, nothing behind an end token: plain decoding is 1"
    ),
    "accepted.tokens_per_round_with_prefill": "the same, prefill counted as a round that commits one token",
    "accepted.drafts_per_round": "accepted draft tokens per decoding round, pooled: plain decoding is 0",
    "accepted.mean_over_replies": "mean over replies of their own tokens per decoding round",
    "positions": (
        "by depth of the draft: rounds whose draft was that deep, those of them in which all earlier depths "
        "were accepted (tested), and those in which this one was too; share = accepted / tested"
    ),
    "shares": (
        "of wall time: forwards of the target, drafter at work while it is not (its model's forwards, if any), "
        "rest"
    ),
    "identical": "replies whose tokens are plain decoding's, all replies; null where only the law is kept",
    **{f"ahead.{name}": meaning for name, meaning in AHEAD.items()},
}


@dataclass(frozen=True)
class Depth:
    """Acceptance at one depth of the draft; ``share`` is None if it was never tested."""

    depth: int
    drafted: int
    tested: int
    accepted: int
    share: float | None


@dataclass(frozen=True)
class Accepted:
    """Accepted length by several definitions, see ``DEFINITIONS``. None where there was no such round."""

    tokens_per_round: float | None
    tokens_per_round_with_prefill: float | None
    drafts_per_round: float | None
    mean_over_replies: float | None

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Accepted:
        every, decoding = total(entries, "rounds"), total(entries, "decoding_rounds")
        tokens, own = total(entries, "new_tokens"), [e.metrics for e in entries]
        drafts = sum(m["mean_accepted_drafts"] * m["decoding_rounds"] for m in own)
        means = [m["mean_accepted_tokens"] for m in own if m["decoding_rounds"]]
        # Prefill comes with an empty draft, so it commits exactly one token.
        return cls(
            ratio(tokens - (every - decoding), decoding),
            ratio(tokens, every),
            ratio(drafts, decoding),
            ratio(sum(means), len(means)),
        )


@dataclass(frozen=True)
class Part:
    """One category of prompts. ``tokens_per_round`` is None where there was no decoding round."""

    prompts: int
    tokens_per_second: float
    speedup: float
    tokens_per_round: float | None


@dataclass(frozen=True)
class ArmSummary:
    """One arm's figures, see ``DEFINITIONS``. ``identical`` is (equal, all) or None, ``ahead`` None in turns."""

    arm: str
    prompts: int
    replies: int
    new_tokens: int
    seconds: float
    tokens_per_second: float
    tokens_per_second_pooled: float
    speedup: float
    speedup_interval: tuple[float, float] | None
    speedup_pooled: float
    speedup_mean_of_ratios: float
    accepted: Accepted
    drafted_tokens: int
    positions: tuple[Depth, ...]
    shares: dict[str, float]
    identical: tuple[int, int] | None
    categories: dict[str, Part]
    faults: dict[str, int]
    ahead: Ahead | None = None

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        return asdict(self)


def summarise(entries: Sequence[Entry], arms: Mapping[str, bool]) -> list[ArmSummary]:
    """The figures of every arm.

    Args:
        entries: answers only, of the same prompts and turns for every arm.
        arms: the arms in the order of the tables, and whether each should repeat plain decoding's tokens.
    """
    by_arm: dict[str, list[Entry]] = {name: [] for name in arms}
    for entry in entries:
        by_arm[entry.arm].append(entry)
    plain = by_arm[PLAIN]
    return [_of_arm(name, by_arm[name], plain, repeats) for name, repeats in arms.items()]


def _of_arm(name: str, mine: list[Entry], plain: list[Entry], repeats: bool) -> ArmSummary:
    ours, theirs = speeds(mine), speeds(plain)
    pairs = [(ours[prompt], theirs[prompt]) for prompt in ours]
    own, base = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    pooled, pooled_plain = (total(e, "new_tokens") / total(e, "seconds") for e in (mine, plain))
    faults: Counter[str] = Counter()
    for entry in mine:
        faults.update(entry.metrics["faults"])
    return ArmSummary(
        arm=name,
        prompts=len(pairs),
        replies=len(mine),
        new_tokens=int(total(mine, "new_tokens")),
        seconds=total(mine, "seconds"),
        tokens_per_second=sum(own) / len(own),
        tokens_per_second_pooled=pooled,
        speedup=speedup(own, base),
        speedup_interval=speedup_interval(own, base),
        speedup_pooled=pooled / pooled_plain,
        speedup_mean_of_ratios=sum(x / y for x, y in pairs) / len(pairs),
        accepted=Accepted.of(mine),
        drafted_tokens=int(total(mine, "drafted_tokens")),
        positions=positions(mine),
        shares=shares(mine),
        identical=identical(mine, plain) if repeats else None,
        categories=parts(mine, ours, theirs),
        faults=dict(faults),
        ahead=Ahead.of(mine),
    )


def speeds(entries: Sequence[Entry]) -> dict[str, float]:
    """Tokens per second of each prompt, its turns together."""
    by_prompt: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_prompt[entry.id].append(entry)
    return {name: total(some, "new_tokens") / total(some, "seconds") for name, some in by_prompt.items()}


def parts(mine: Sequence[Entry], ours: dict[str, float], theirs: dict[str, float]) -> dict[str, Part]:
    """Figures by category."""
    members: dict[str, dict[str, None]] = defaultdict(dict)
    for entry in mine:
        members[entry.category][entry.id] = None
    table = {}
    for category, names in members.items():
        own, base = [ours[name] for name in names], [theirs[name] for name in names]
        accepted = Accepted.of([entry for entry in mine if entry.category == category])
        table[category] = Part(len(own), sum(own) / len(own), speedup(own, base), accepted.tokens_per_round)
    return table


def positions(entries: Sequence[Entry]) -> tuple[Depth, ...]:
    """Acceptance by depth, pooled over all rounds."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for entry in entries:
        for depth, position in enumerate(entry.metrics["positions"], start=1):
            counts[depth].update(position)
    return tuple(
        Depth(depth, c["drafted"], c["tested"], c["accepted"], ratio(c["accepted"], c["tested"]))
        for depth, c in sorted(counts.items())
    )


def shares(entries: Sequence[Entry]) -> dict[str, float]:
    """Where the wall time went; the three add up to 1."""
    # Of a drafter with a model only the forwards count, as they do for the target.
    drafter = sum(e.metrics["drafter_model_seconds"] or e.metrics["exposed_seconds"] for e in entries)
    target, host, whole = (total(entries, f"{name}seconds") for name in ("target_", "host_", ""))
    return {"target": target / whole, "drafter": drafter / whole, "host": host / whole}


def identical(mine: Sequence[Entry], plain: Sequence[Entry]) -> tuple[int, int]:
    """How many replies have plain decoding's tokens, of how many."""
    wanted = {(entry.id, entry.turn): entry.tokens for entry in plain}
    return sum(entry.tokens == wanted[entry.id, entry.turn] for entry in mine), len(mine)


def total(entries: Sequence[Entry], figure: str) -> float:
    """Sum of one of the metrics."""
    return float(sum(entry.metrics[figure] for entry in entries))


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to divide by."""
    return part / whole if whole else None
