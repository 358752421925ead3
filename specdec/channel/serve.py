"""What a drafter's process does: meet the target's, answer until it is not needed any more."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from specdec.channel.pair import DRAFTER, Pair, Rendezvous
from specdec.channel.sides import absent, assembled
from specdec.messages import Closing, Message, Opening, Ready, moved
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.worker import Absent, DraftWorker

log = logging.getLogger(__name__)

AWAITED, ARRIVALS = "awaited", "arrivals"  # in the store: that a drafter is, and how many have come so far
PAUSE = 0.02  # seconds between two looks into the store
PREFACE = "import sys; sys.path[:] = {path}; from specdec.channel.serve import main; main({address!r})"


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


def main(address: str) -> None:
    """Serve the assembly that comes through standard input to the target at "host:port"."""
    # What cannot be read here, such as a class of the other side's own script, is told as what cannot be made is.
    made = Service(lambda: pickle.load(sys.stdin.buffer)())
    made.serve(Rendezvous.of(address, opens=False))
    os._exit(0)  # a thread still listens to a connection that is over


class Service:
    """A drafter's side, ready to meet a target.

    Args:
        make: makes the worker, now; where that fails, the target is told why.
    """

    def __init__(self, make: Callable[[], DraftWorker]) -> None:
        self._worker, self._failure = None, ""
        try:
            self._worker = make()
        except Exception as error:  # for the user, who sits at the other side
            log.debug("", exc_info=error)
            self._failure = f"the drafter could not be made: {error}"

    def serve(self, at: Rendezvous) -> bool:
        """Wait for the target, and answer it until it closes, or is gone.

        Returns:
            whether it has closed, or does not fit; else it may come again.

        Raises:
            ConnectionError: it does not come.
            RuntimeError: where they were to meet, there is nothing any more.
        """
        while not at.store.check([AWAITED]):  # it may be long in loading
            time.sleep(PAUSE)
        device = None if self._worker is None else self._worker.device
        try:
            pair = Pair(at, str(at.store.add(ARRIVALS, 1)), DRAFTER, device)
        except ValueError as error:  # the user, who sits at the other side, hears the same
            log.debug("", exc_info=error)
            return True
        try:
            while True:
                messages = pair.waiting()
                if any(isinstance(message, Closing) for message in messages):
                    return True
                self._answer(messages, pair)
        except ConnectionError:
            return False
        except Exception:  # a mistake: the target must not wait for who is not there any more
            pair.send(Closing())
            raise
        finally:
            pair.close()

    def _answer(self, messages: list[Message], pair: Pair) -> None:
        if self._worker is None:
            refuse(pair, messages, self._failure)
        else:
            device = self._worker.device
            self._worker.serve([moved(message, device) for message in messages], pair.send)


def refuse(pair: Pair, messages: list[Message], why: str) -> None:
    """Answer openings with what went wrong."""
    for message in messages:
        if isinstance(message, Opening):
            pair.send(Ready(message.generation, why))
