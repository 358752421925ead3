"""What a drafter's process does: meet the target's, answer until it is not needed any more."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from specdec.channel.pair import DRAFTER, Pair, Rendezvous
from specdec.channel.sides import assembled, borrows
from specdec.messages import Closing, Message, Opening, Ready, moved
from specdec.protocols import Drafter, Forecast
from specdec.runtime import CachedModel
from specdec.worker import Absent, DraftWorker

log = logging.getLogger(__name__)

# In the store: that a drafter is awaited, how many have come so far, that one wants the target's network.
AWAITED, ARRIVALS, WANTED = "awaited", "arrivals", "wanted"
PAUSE = 0.02  # seconds between two looks into the store
PREFACE = "import sys; sys.path[:] = {path}; from specdec.channel.serve import main; main({address!r}, {target})"
GRACE = 3.0  # seconds to leave by itself for who has lost its target


@dataclass(frozen=True)
class Assembly:
    """What a worker is made of, ready to be sent to another process.

    Attributes:
        drafter: the drafter, or a function that makes it.
        forecast: which outcomes to prepare for.
        target: what it may know of the target, without its network.
        threads: for its computations on the CPU.
    """

    drafter: Drafter | Callable[[], Drafter]
    forecast: Forecast
    target: Absent
    threads: int

    @classmethod
    def of(cls, drafter: Drafter | Callable[[], Drafter], forecast: Forecast, target: Absent) -> Assembly:
        """For a target in this process."""
        return cls(drafter, forecast, replace(target, model=None), max(1, torch.get_num_threads() // 2))

    def __call__(self, network: Callable[[], CachedModel | None]) -> DraftWorker:
        """Make the worker; ``network`` gets the target's, None where it is out of reach."""
        torch.set_num_threads(self.threads)
        drafter: Any = self.drafter if hasattr(self.drafter, "draft") else self.drafter()
        target = replace(self.target, model=network()) if borrows(drafter) else self.target
        return assembled(drafter, self.forecast, target)


def main(address: str, target: int) -> None:
    """Serve the assembly that comes through standard input to the process ``target``, met at "host:port"."""
    threading.Thread(target=outlived, args=(target,), daemon=True).start()
    at, parcels = Rendezvous.of(address, opens=False), pickle.Unpickler(sys.stdin.buffer)

    def network() -> CachedModel | None:
        at.store.set(WANTED, "")
        sent: CachedModel | None = parcels.load()
        return sent

    # What cannot be read here, such as a class of the other side's own script, is told as what cannot be made is.
    service = Service(lambda: parcels.load()(network))
    with suppress(RuntimeError):  # the target has ended before it was met
        service.serve(at)
    os._exit(0)  # a thread still listens to a connection that is over


def outlived(target: int) -> NoReturn:
    """End this process once the one that has started it has ended, whatever a drafter is busy with."""
    while os.getppid() == target:
        time.sleep(PAUSE)
    time.sleep(GRACE)
    os._exit(1)


def serve_drafter(drafter: Drafter, forecast: Forecast, address: str, device: str | torch.device = "cpu") -> None:
    """Draft for a target in another process, on this machine or another, until it closes or is gone.

    The other side is ``Process(address=...)``, which waits for a drafter at that address. Either may come first;
    the target is waited for, for five minutes.

    Args:
        drafter: one that does not borrow from the target, which stays where it is.
        forecast: which outcomes to prepare for, the same as at the target's side.
        address: "host:port" of the target.
        device: where the rows are kept for a drafter that names no device.

    Raises:
        ValueError: no such address.
        ConnectionError: there is no target.
    """
    unknown = 0  # the vocabulary's width; an opening tells
    target = Absent(unknown, torch.device(device))
    attend(Service(lambda: assembled(drafter, forecast, target)), Rendezvous.of(address, opens=False))


def attend(service: Service, at: Rendezvous) -> None:
    """Serve until the target closes or its store is gone; a connection that breaks is made again."""
    while not served(service, at):
        log.warning("the connection to the target's side was lost")


def served(service: Service, at: Rendezvous) -> bool:
    """See ``Service.serve``; a target that has not come may yet, and a mistake costs one connection."""
    try:
        return service.serve(at)
    except ConnectionError:
        return False
    except Exception as error:  # whatever a drafter raises
        try:
            at.store.check([AWAITED])
        except RuntimeError:  # nobody can be met there any more
            return True
        log.warning("a drafter's side failed", exc_info=error)
        return False


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
        except BaseException:  # a mistake, or Ctrl-C: the target must not wait for who is not there any more
            with suppress(ConnectionError):
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
