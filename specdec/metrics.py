"""Figures computed from a trace, each with its definition."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from specdec.overlap import Overlap
from specdec.trace import Trace


@dataclass(frozen=True)
class Position:
    """Acceptance at one depth of the draft, over the rounds of a generation.

    Attributes:
        drafted: rounds whose draft reached this depth.
        tested: those of them in which every earlier depth was accepted.
        accepted: those of them in which this depth was accepted too.
    """

    drafted: int
    tested: int
    accepted: int


@dataclass(frozen=True)
class Metrics:
    """What a generation did and where its time went.

    Attributes:
        new_tokens: committed tokens, nothing behind an end token counted.
        rounds: row-rounds, one per row and target forward, prefill included.
        decoding_rounds: row-rounds after prefill.
        mean_accepted_tokens: tokens committed per decoding round, pooled over all rounds, the correction or
            bonus token included: plain decoding is 1.00 (Spec-Bench's definition, without the prefill).
        mean_accepted_drafts: the same without the correction or bonus token: plain decoding is 0.
        mean_accepted_tokens_by_row: mean of the rows' own means. It differs where rows differ in length.
        drafted_tokens: draft nodes that the target scored.
        positions: acceptance by depth, depth 1 first.
        seconds: wall time of the generation, prefill included.
        target_seconds: forwards of the target; what it waits for in the midst of them is no part of them.
        drafter_seconds: calls of the drafter, its model's forwards included; of one that works ahead, those after
            prefill.
        exposed_seconds: of these, what was done while the target did not work: all of it in turns.
        drafter_model_seconds: forwards of the drafter's model.
        host_seconds: all that is not a forward of a model and not a model-free drafter at work. Of a drafter that
            works ahead only what is exposed is taken off.
        faults: what the drafter did wrong, and how often.
        overlap: of a drafter that works ahead; None in turns, and where prefill ended all rows.
    """

    new_tokens: int
    rounds: int
    decoding_rounds: int
    mean_accepted_tokens: float
    mean_accepted_drafts: float
    mean_accepted_tokens_by_row: float
    drafted_tokens: int
    positions: tuple[Position, ...]
    seconds: float
    target_seconds: float
    drafter_seconds: float
    exposed_seconds: float
    drafter_model_seconds: float
    host_seconds: float
    faults: dict[str, int]
    overlap: Overlap | None = None

    @classmethod
    def of(cls, trace: Trace) -> Metrics:
        """Compute every figure."""
        by_row: dict[int, list[int]] = defaultdict(list)
        for entry in trace.rounds:
            by_row[entry.row].append(entry.committed)
        decoding = {row: rounds[1:] for row, rounds in by_row.items() if len(rounds) > 1}
        committed = [count for rounds in decoding.values() for count in rounds]
        seconds, target = trace.end - trace.start, trace.seconds("target") - trace.seconds("target.hint")
        drafter, model = trace.seconds("drafter"), trace.seconds("drafter.model")
        ahead, exposed = Overlap.of(trace) if trace.handovers else None, drafter
        if ahead is not None:
            drafter, exposed, model = ahead.drafter, ahead.exposed, 0.0
        return cls(
            new_tokens=sum(entry.committed for entry in trace.rounds),
            rounds=len(trace.rounds),
            decoding_rounds=len(committed),
            mean_accepted_tokens=_mean(committed),
            mean_accepted_drafts=_mean([entry.accepted for entry in trace.rounds[len(by_row) :]]),
            mean_accepted_tokens_by_row=_mean([_mean(rounds) for rounds in decoding.values()]),
            drafted_tokens=sum(entry.nodes for entry in trace.rounds),
            positions=positions(trace),
            seconds=seconds,
            target_seconds=target,
            drafter_seconds=drafter,
            exposed_seconds=exposed,
            drafter_model_seconds=model,
            host_seconds=seconds - target - (model or exposed),
            faults=dict(trace.faults),
            overlap=ahead,
        )

    @property
    def tokens_per_second(self) -> float:
        """Committed tokens of all rows per second of wall time, prefill included."""
        return self.new_tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def hit_rate(self) -> float | None:
        """Of a drafter that works ahead: share of outcomes for which its draft was ready."""
        return None if self.overlap is None else self.overlap.hit_rate

    @property
    def hidden(self) -> float | None:
        """Of a drafter that works ahead: share of its work that was done while the target worked."""
        return None if self.overlap is None else self.overlap.hidden

    def as_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        overlap = None if self.overlap is None else self.overlap.as_dict()
        return {**asdict(self), "overlap": overlap, "tokens_per_second": self.tokens_per_second}


def positions(trace: Trace) -> tuple[Position, ...]:
    """Acceptance by depth. A round that the row's end cut short counts up to where it was cut."""
    deepest = max((entry.drafted for entry in trace.rounds), default=0)
    table = []
    for depth in range(1, deepest + 1):
        drafted = [entry for entry in trace.rounds if entry.drafted >= depth]
        tested = [entry for entry in drafted if entry.accepted >= depth - 1]
        table.append(Position(len(drafted), len(tested), sum(entry.accepted >= depth for entry in tested)))
    return tuple(table)


def _mean(values: list[float] | list[int]) -> float:
    return sum(values) / len(values) if values else 0.0
