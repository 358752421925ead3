"""What happened: spans of time on lanes, and a record per round. Metrics come from it, never from the loop."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from specdec.report import BEFORE, COMMITTED, ENDED, FACTS, FAULTS, TOKENS, Step
from specdec.runtime.clock import DeviceClock
from specdec.runtime.mail import Mail

log = logging.getLogger(__name__)

Clock = Callable[[], Any]  # seconds, or what a device's clock makes seconds of
Networks = Mapping[str, Sequence[nn.Module]]  # by the lane on which their forwards are timed


@dataclass(frozen=True)
class Span:
    """Seconds on one lane, on the trace's clock.

    Attributes:
        lane: "target", its verifications, "target.exit", the moment in which its early exit has spoken, and
            "target.hint", the time inside a verification in which it does not go on, since that is handed over;
            "drafter", and "drafter.look", ".branch", ".settle" and ".draft" of one that works ahead, with
            "drafter.model", forwards of its models; "link.early", "link.outcome" and "link.draft", messages on
            their way; "host.verify" and "host.propose", parts of a round that the host plays, "host.send",
            "host.launch" and "host.wait".
        start, end: seconds.
        round: of a drafter that works ahead, the hand-over that this led to, counted from 0; else None.
    """

    lane: str
    start: float
    end: float
    round: int | None = None

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


@dataclass(frozen=True)
class Handover:
    """How a round's outcome met a drafter that worked ahead.

    Attributes:
        hit: per row, whether a draft for the outcome was there.
        branches: outcomes that had been prepared, all rows together; neither padding nor rows that had ended.
        omega: per row, the mass of the target's law on the tokens that its early exit had named, behind the last
            committed token and each accepted one (of a row that had ended: rubbish). Empty without an exit, and
            where rounds are replayed: what it names stays on the drafter's device.
    """

    hit: tuple[bool, ...]
    branches: int
    omega: tuple[tuple[float, ...], ...] = ()


@dataclass
class Trace:
    """Spans, rounds and faults of one generation.

    Args:
        clock: seconds; a wall clock, a virtual one, or a device's.
        listener: called after every round with what it added to every row.
        drafter: what faults are booked under.
        lag: rounds that the host may run ahead of what it has read, so that a device need not wait for it.
    """

    clock: Clock = time.perf_counter
    listener: Callable[[list[Step]], None] | None = None
    lag: int = 0
    drafter: str = "drafter"
    done: bool = False
    spans: list[Span] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    handovers: list[Handover] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    start: float = 0.0
    end: float = 0.0
    _mail: list[Any] = field(default_factory=list)
    _marks: list[tuple[str, Any, Any, int | None]] = field(default_factory=list)

    def round(self, report: Tensor) -> None:
        """Record what one round did to every row that had not ended before it; see ``report``."""
        self._mail.append(Mail(report) if self.lag else report)
        while len(self._mail) > self.lag:
            self._read(self._mail.pop(0).tolist())

    def _read(self, lines: list[list[int]]) -> None:
        steps = [
            Step(row, line[BEFORE], line[ENDED] == 1, line[TOKENS : TOKENS + line[COMMITTED]])
            for row, line in enumerate(lines)
        ]
        for (ended, _, drafted, nodes, committed, accepted, *_), step in zip(lines, steps, strict=True):
            if not ended:
                # Where the row's end cut the round short, what lies behind was neither accepted nor rejected.
                depth = committed if committed <= accepted else drafted
                self.rounds.append(Round(step.row, depth, nodes, min(accepted, committed), committed))
        for index, message in enumerate(FAULTS, FACTS):
            if any(line[index] for line in lines):
                self.fault(message)
        self.done = all(step.ended for step in steps)
        if self.listener is not None:
            self.listener(steps)

    def handover(
        self,
        hit: list[bool],
        branches: int = 0,
        spans: tuple[Span, ...] = (),
        omega: tuple[tuple[float, ...], ...] = (),
    ) -> None:
        """Record how the last round's outcome met a drafter that worked ahead: see ``Handover``."""
        self.handovers.append(Handover(tuple(hit), branches, omega))
        self.spans += spans

    def late(self, round: int, branches: int, spans: tuple[Span, ...]) -> None:
        """Record what a drafter did for a hand-over that went without it."""
        self.handovers[round] = replace(self.handovers[round], branches=branches)
        self.spans += spans

    def instant(self, lane: str, round: int | None = None) -> None:
        """Record that something happens now."""
        now = self.clock()
        self._marks.append((lane, now, now, round))

    def passed(self, lane: str, mark: torch.cuda.Event | None, round: int | None = None) -> None:
        """Record when a device passed a mark that it may soon pass again."""
        if mark is not None and isinstance(self.clock, DeviceClock):
            at = self.clock.seconds((self.clock.device(mark), mark))
            self.spans.append(Span(lane, at, at, round))

    def fault(self, message: str, error: Exception | None = None) -> None:
        """Count a fault of the drafter, and say it when it is first seen."""
        message = f"{self.drafter}: {message}"
        self.faults[message] += 1
        if self.faults[message] == 1:
            log.warning("%s (decoding goes on without this draft)", message, exc_info=error)

    @contextmanager
    def span(self, lane: str, round: int | None = None) -> Iterator[None]:
        """Time what happens inside."""
        start = self.clock()
        try:
            yield
        finally:
            self._marks.append((lane, start, self.clock(), round))

    @contextmanager
    def running(self, networks: Networks) -> Iterator[None]:
        """The whole generation: its start and end, and a span on a lane for every forward of its networks."""
        with ExitStack() as stack:
            for lane, modules in networks.items():
                for module in modules:
                    stack.enter_context(self._watching(module, lane))
            start = self.clock()
            try:
                yield
            finally:
                self._settle(start, self.clock())

    def _settle(self, start: Any, end: Any) -> None:
        read = self.clock.seconds if isinstance(self.clock, DeviceClock) else float
        self.start, self.end = read(start), read(end)
        self.spans += [Span(lane, read(first), read(last), round) for lane, first, last, round in self._marks]
        self._marks.clear()

    @contextmanager
    def _watching(self, network: nn.Module, lane: str) -> Iterator[None]:
        starts: list[Any] = []

        def begin(*_: Any) -> None:
            starts.append(self.clock())

        def finish(*_: Any) -> None:
            self._marks.append((lane, starts.pop(), self.clock(), None))

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
