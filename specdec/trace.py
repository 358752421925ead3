"""What happened: spans of time on lanes, and a record per round. Metrics come from it, never from the loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from specdec.protocols import Drafter
from specdec.sequences import Sequences
from specdec.types import Draft, Verdict


@dataclass(frozen=True)
class Span:
    """Seconds on one lane ("target", "drafter" or "drafter.model"), on the trace's clock."""

    lane: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Round:
    """One round of one row.

    Attributes:
        row: which row.
        drafted: depth of its draft, up to the row's end.
        nodes: nodes of its draft.
        accepted: accepted tokens, after cutting at the row's end.
        committed: tokens the row grew by, the correction or bonus token included.
    """

    row: int
    drafted: int
    nodes: int
    accepted: int
    committed: int


@dataclass
class Trace:
    """Spans, rounds and faults of one generation.

    Args:
        clock: seconds; a wall clock, or a virtual one.
        listener: called after every round with the rows before and after it.
    """

    clock: Callable[[], float] = time.perf_counter
    listener: Callable[[Sequences, Sequences], None] | None = None
    spans: list[Span] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    start: float = 0.0
    end: float = 0.0

    def round(self, before: Sequences, after: Sequences, draft: Draft, verdict: Verdict) -> None:
        """Record what one round did to every row that had not ended before it."""
        drafted = draft.depths.amax(1).tolist() if draft.size else [0] * len(before.lengths)
        nodes = (draft.depths > 0).sum(1).tolist()
        accepted, committed = verdict.accepted.tolist(), (after.lengths - before.lengths).tolist()
        for row, ended in enumerate(before.ended.tolist()):
            if not ended:
                # Where the row's end cut the round short, what lies behind was neither accepted nor rejected.
                cut = committed[row] <= accepted[row]
                depth = committed[row] if cut else drafted[row]
                self.rounds.append(
                    Round(row, depth, nodes[row], min(accepted[row], committed[row]), committed[row])
                )
        if self.listener is not None:
            self.listener(before, after)

    def fault(self, message: str) -> int:
        """Count a fault of the drafter; returns how often it happened."""
        self.faults[message] += 1
        return self.faults[message]

    @contextmanager
    def span(self, lane: str) -> Iterator[None]:
        """Time what happens inside."""
        start = self.clock()
        try:
            yield
        finally:
            self.spans.append(Span(lane, start, self.clock()))

    @contextmanager
    def running(self, networks: dict[str, nn.Module | None]) -> Iterator[None]:
        """The whole generation: its start and end, and a span on a lane for every forward of its network."""
        with ExitStack() as stack:
            for lane, network in networks.items():
                if network is not None:
                    stack.enter_context(self._watching(network, lane))
            self.start = self.clock()
            try:
                yield
            finally:
                self.end = self.clock()

    @contextmanager
    def _watching(self, network: nn.Module, lane: str) -> Iterator[None]:
        starts: list[float] = []

        def begin(*_: Any) -> None:
            starts.append(self.clock())

        def finish(*_: Any) -> None:
            self.spans.append(Span(lane, starts.pop(), self.clock()))

        handles = [
            network.register_forward_pre_hook(begin, prepend=True),
            network.register_forward_hook(finish),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seconds(self, lane: str) -> float:
        """Total time on a lane."""
        return sum(span.seconds for span in self.spans if span.lane == lane)


class Timed:
    """A drafter whose every call is a span on the lane "drafter"."""

    def __init__(self, drafter: Drafter, trace: Trace) -> None:
        self._drafter, self._trace = drafter, trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._drafter, name)

    def draft(self, *args: Any) -> Draft:
        with self._trace.span("drafter"):
            return self._drafter.draft(*args)
