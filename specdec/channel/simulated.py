"""Both sides in one thread and on two virtual clocks: what a pair would take whose costs are known."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch

from specdec.channel.sides import worker_for
from specdec.hypotheses import Candidates
from specdec.messages import Early, Message, Outcome, Window, moved
from specdec.partner import Link
from specdec.planner import Costs
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.trace import Clock
from specdec.types import Draft
from specdec.virtual import Priced, VirtualClock
from specdec.worker import DraftWorker


@dataclass(frozen=True)
class Simulated:
    """Target and drafter as if each had a device of its own, of which nothing but the costs is needed.

    Tokens, windows, acceptance and hits are those of the models; every time in the trace comes from ``costs``, in
    turns (without a forecast) as well as ahead, and is what the planner's laws say of that acceptance and those
    hits. It does not depend on the machine.

    Attributes:
        costs: measured or assumed, of one sequence.
    """

    costs: Costs

    @property
    def patience(self) -> float:
        """Every answer is there at once."""
        return 1.0

    @contextmanager
    def link(self, drafter: Drafter, forecast: Forecast, verifier: Verifier, clock: Clock) -> Iterator[Link]:
        """A connection for one generation. Raises ValueError where a full window's costs were not measured."""
        check_measured(self.costs, drafter, forecast, verifier.vocab_size)
        target, beside = cast(VirtualClock, clock), VirtualClock()
        priced = cast(Drafter, Priced(drafter, self.costs, beside))
        yield SimulatedLink(worker_for(priced, forecast, verifier, beside), self.costs, target, beside)


class SimulatedLink:
    """Calls a worker, and keeps both sides' clocks.

    Args:
        worker: the drafter's side.
        costs: of messages and of the host.
        target, drafter: the clocks of both sides.
    """

    def __init__(self, worker: DraftWorker, costs: Costs, target: VirtualClock, drafter: VirtualClock) -> None:
        self._worker, self._costs, self._target, self._drafter = worker, costs, target, drafter
        self._answers: deque[Message] = deque()

    def send(self, message: Message) -> None:
        """The worker takes it when it is there and the worker is done with what it could do before."""
        self._worker.ahead()
        sent = self._target.now
        if isinstance(message, Early):
            self._target.spend(self._costs.early)  # its layers go on when this has arrived, as the law has it
        self._drafter.wait(self._target.now)
        if isinstance(message, Outcome):
            self._drafter.spend(self._costs.final)
        message = replace(moved(message, self._worker.device), sent=sent, arrived=self._drafter.now)
        self._worker.hear(message)
        answer = self._worker.handle(message)
        if answer is not None:
            self._answers.append(replace(answer, sent=self._drafter.now))
        if isinstance(answer, Window) and answer.draft.size:
            self._drafter.spend(self._costs.host)  # neither side goes on before the loop does

    def receive(self, timeout: float | None) -> Message | None:
        """What the worker answered, when it did."""
        self._target.wait(self._drafter.now)
        return replace(self._answers.popleft(), arrived=self._target.now) if self._answers else None

    def revive(self) -> bool:
        """It is never gone."""
        return True


def check_measured(costs: Costs, drafter: Drafter, forecast: Forecast, vocabulary: int) -> None:
    """Raises ValueError where the costs of a full window, or of its branches, were not measured.

    Later it would be a fault of the drafter, of which nobody learns before the end.
    """
    one_B = torch.ones(1, dtype=torch.int64)
    window = Draft.chain(one_B.expand(1, drafter.size), one_B, drafter.size * one_B)
    costs.verify(window.size)
    fanout = getattr(drafter, "fanout", 1)  # a step advances so many nodes of every branch
    if window.size:
        costs.draft(window.size, fanout)
    if hasattr(drafter, "branch"):
        own_BMV = torch.zeros(1, window.size + 1, vocabulary)
        early = None if forecast.exit is None else Candidates.top(own_BMV, window, forecast.exit.top)
        costs.draft(window.size, fanout * forecast(window, own_BMV, early).size)
