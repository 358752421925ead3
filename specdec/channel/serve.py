"""What a drafter's process does: meet the target's, answer until it is not needed any more."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed

from specdec.channel.pair import DRAFTER, Pair
from specdec.channel.sides import absent, assembled
from specdec.messages import Closing, Message, Opening, Ready
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.worker import Absent, DraftWorker

log = logging.getLogger(__name__)

ARRIVALS = "arrivals"  # in the store: how many drafters have come so far
PREFACE = "import sys; sys.path[:] = {path}; from specdec.channel.serve import main; main({host!r}, {port})"


@dataclass(frozen=True)
class Assembly:
    """What a worker is made of, ready to be sent to another process.

    Attributes:
        drafter: the drafter, or a function that makes it.
        forecast: which outcomes to prepare for.
        target: what it may know of the target.
        threads: for its computations on the CPU.
    """

    drafter: Drafter | Callable[[], Drafter]
    forecast: Forecast
    target: Absent
    threads: int

    @classmethod
    def of(cls, drafter: Drafter | Callable[[], Drafter], forecast: Forecast, verifier: Verifier) -> Assembly:
        """For a target in this process. Its layers go along where they are on the CPU."""
        target = absent(drafter, verifier)
        if verifier.device.type != "cpu":
            target = replace(target, model=None)
        return cls(drafter, forecast, target, max(1, torch.get_num_threads() // 2))

    def __call__(self) -> DraftWorker:
        """Make the worker."""
        torch.set_num_threads(self.threads)
        drafter: Any = self.drafter if hasattr(self.drafter, "draft") else self.drafter()
        return assembled(drafter, self.forecast, self.target)


def main(host: str, port: int) -> None:
    """Serve the assembly that comes through standard input."""
    serve(pickle.load(sys.stdin.buffer), host, port)
    os._exit(0)  # a thread still listens to a connection that is over


def serve(make: Callable[[], DraftWorker], host: str, port: int, here: str | None = None) -> None:
    """Answer the target at ``host:port`` until it closes or is gone.

    Args:
        make: makes the worker; where that fails, the target is told why.
        host, port: where the target's side waits.
        here: address of this side's network interface; None is ``host``.

    Raises:
        ConnectionError: there is no target.
    """
    try:
        worker, failure = make(), ""
    except Exception as error:  # for the user, who sits at the other side
        log.debug("", exc_info=error)
        worker, failure = None, f"the drafter could not be made: {error}"
    store = distributed.TCPStore(host, port, is_master=False)
    pair = Pair(store, str(store.add(ARRIVALS, 1)), DRAFTER, here or host)
    while True:
        try:
            messages = pair.waiting()
            if any(isinstance(message, Closing) for message in messages):
                return
            if worker is None:
                refuse(pair, messages, failure)
            else:
                worker.serve(messages, pair.send)
        except ConnectionError:
            return


def refuse(pair: Pair, messages: list[Message], why: str) -> None:
    """Answer openings with what went wrong."""
    for message in messages:
        if isinstance(message, Opening):
            pair.send(Ready(message.generation, why))
