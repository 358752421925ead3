"""Both sides in one thread: the drafter works when it is spoken to. The reference for all other channels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from specdec.channel.sides import worker_for
from specdec.messages import Message, Outcome, arriving, leaving, moved
from specdec.partner import Link
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.trace import Clock
from specdec.worker import DraftWorker


@dataclass(frozen=True)
class Inline:
    """The drafter's side is called by the target's. On a CPU nothing overlaps."""

    costs = None

    @property
    def patience(self) -> float:
        """Every answer is there at once."""
        return 1.0

    @contextmanager
    def link(self, drafter: Drafter, forecast: Forecast, verifier: Verifier, clock: Clock) -> Iterator[Link]:
        """A connection for one generation."""
        yield InlineLink(worker_for(drafter, forecast, verifier, clock))


class InlineLink:
    """Calls a worker."""

    def __init__(self, worker: DraftWorker) -> None:
        self._worker = worker
        self._answers: deque[Message] = deque()

    def send(self, message: Message) -> None:
        """The worker takes it now; what it could have done before, it does first."""
        if isinstance(message, Outcome) or not self._answers:
            self._worker.ahead()
        message = arriving(moved(leaving(message), self._worker.device))
        self._worker.hear(message)
        answer = self._worker.handle(message)
        if answer is not None:
            self._answers.append(arriving(leaving(answer)))

    def receive(self, timeout: float | None) -> Message | None:
        """What the worker answered."""
        return self._answers.popleft() if self._answers else None

    def revive(self) -> bool:
        """It is never gone."""
        return True
