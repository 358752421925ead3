"""The drafter's side in a process of its own: another device, or another machine."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from specdec.channel.nccl import check_backend, check_target
from specdec.channel.pair import TARGET, Pair, Rendezvous
from specdec.channel.serve import ARRIVALS, AWAITED, PREFACE, Assembly
from specdec.messages import Closing, Message
from specdec.partner import Link, check_seconds
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.trace import Clock

log = logging.getLogger(__name__)

RESTARTS = 3  # of a drafter that dies again and again


class Process:
    """The drafter works in another process, over ``torch.distributed``.

    It is started when it is first needed, and again when it dies; it ends with ``close`` or with this process.

    Args:
        patience: seconds to wait for a draft before a round goes without.
        address: "host:port" at which a drafter is awaited that somebody else starts (``specdec.channel.serve``),
            on this machine or another, or another place to meet it; None starts one here.
        meeting: seconds to wait for the drafter to come.
        backend: what carries the messages: "gloo", or "nccl" from GPU to GPU.

    Raises:
        ValueError: NCCL cannot be had, or seconds that are not above 0, or without end.
    """

    costs = None

    def __init__(
        self,
        patience: float = 1.0,
        address: str | Rendezvous | None = None,
        meeting: float = 120.0,
        backend: str = "gloo",
    ) -> None:
        check_backend(backend)
        check_seconds("patience", patience)
        check_seconds("meeting", meeting)
        self.patience, self._address, self._meeting, self._backend = patience, address, meeting, backend
        self._held: tuple[object, object, object] | None = None
        self._link: ProcessLink | None = None

    @contextmanager
    def link(
        self, drafter: Drafter | Callable[[], Drafter], forecast: Forecast, verifier: Verifier, clock: Clock
    ) -> Iterator[Link]:
        """A connection for one generation; the process stays for the next.

        A function that makes the drafter is called over there; a drafter is sent there, with its weights.
        Its spans go by the clock over there: the target's reaches this process only.
        Raises ValueError where NCCL is wanted and a side lacks a GPU for it.
        """
        if self._link is None or self._held != (drafter, forecast, verifier):
            self.close()
            by_nccl = self._backend == "nccl"
            if by_nccl:
                check_target(verifier.device, alone=self._address is None)
            assembly = None if self._address else Assembly.of(drafter, forecast, verifier)
            address = self._address or "127.0.0.1:0"
            self._link = ProcessLink(assembly, address, self._meeting, verifier.device if by_nccl else None)
            self._held = (drafter, forecast, verifier)
        with sharing_cores(verifier.device if self._address is None else None):
            yield self._link

    def close(self) -> None:
        """End the drafter's process."""
        if self._link is not None:
            self._link.close()
        self._link = self._held = None


@dataclass
class Ends:
    """What a connection holds that does not end by itself."""

    child: subprocess.Popen[bytes] | None = None
    pair: Pair | None = None


class ProcessLink:
    """A connection that can be made again.

    Args:
        assembly: what to start the drafter with; None waits for one.
        address: "host:port" of this side, where port 0 is any, or where to meet.
        meeting: seconds to wait for the drafter to come.
        device: for NCCL; None talks by gloo.

    Raises:
        ValueError: NCCL is wanted, and the drafter has no GPU of its own.
    """

    def __init__(
        self,
        assembly: Assembly | None,
        address: str | Rendezvous,
        meeting: float,
        device: torch.device | None = None,
    ) -> None:
        self._at = address if isinstance(address, Rendezvous) else Rendezvous.of(address, opens=True)
        self._assembly, self._device, self._restarts = assembly, device, 0
        self._met, self._misfit = self._at.store.add(ARRIVALS, 0), ""
        self._at.store.set(AWAITED, "")
        self._ends = Ends()
        self._finish = weakref.finalize(self, finish, self._ends)  # at the latest when this process ends
        self._meet()
        self._meeting_thread.join(meeting)
        if self._misfit:
            self.close()
            raise ValueError(self._misfit)

    def send(self, message: Message) -> None:
        """Let a message go. Raises ConnectionError where the drafter is gone."""
        self._connected.send(message)

    def receive(self, timeout: float | None) -> Message | None:
        """The next answer. Raises ConnectionError where the drafter is gone."""
        return self._connected.receive(timeout)

    def revive(self) -> bool:
        """Whether the drafter is back; one that this side has started is started again."""
        if self._meeting_thread.is_alive():
            return False
        if self._ends.pair is not None and not self._ends.pair.ended:
            return True
        if self._assembly is None or self._restarts < RESTARTS:
            self._restarts += 1
            self._meet()
        return False

    def close(self) -> None:
        """End the drafter's process."""
        self._finish()

    @property
    def _connected(self) -> Pair:
        if self._ends.pair is None:
            raise ConnectionError("the drafter's process has not come")
        return self._ends.pair

    def _meet(self) -> None:
        """Start a drafter if that is ours to do, and wait for it without waiting."""
        self._ends.pair = None
        if self._assembly is not None:
            if self._ends.child is not None:
                end(self._ends.child)
            self._ends.child = started(self._at)
        self._meeting_thread = threading.Thread(target=self._await, name="meeting", daemon=True)
        self._meeting_thread.start()

    def _await(self) -> None:
        if self._ends.child is not None and not self._handed(self._ends.child):
            return
        while (arrived := self._at.store.add(ARRIVALS, 0)) <= self._met:
            if self._ends.child is not None and self._ends.child.poll() is not None:
                return
            threading.Event().wait(0.02)
        self._met = arrived
        try:
            self._ends.pair = Pair(self._at, str(arrived), TARGET, self._device)
        except ConnectionError as error:
            log.warning("%s", error)
        except ValueError as error:
            self._misfit = str(error)

    def _handed(self, child: subprocess.Popen[bytes]) -> bool:
        """Hand the drafter's side over, which takes as long as the process takes to begin; whether it took it."""
        stream: Any = child.stdin
        try:
            with stream:
                pickle.dump(self._assembly, stream)
        except OSError as error:  # it has ended
            log.warning("the drafter's process has ended before it began: %s", error)
            return False
        except Exception as error:  # whatever a part of it raises that cannot be sent
            self._misfit = f"the drafter cannot be sent to another process: {error}"
            return False
        return True


@contextmanager
def sharing_cores(device: torch.device | None) -> Iterator[None]:
    """Two processes that compute on one CPU take half of its threads each: more would wait for one another."""
    threads = torch.get_num_threads()
    if device is not None and device.type == "cpu":
        torch.set_num_threads(max(1, threads - threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def started(at: Rendezvous) -> subprocess.Popen[bytes]:
    """A process that waits for what it is to serve; Ctrl-C does not reach it, it ends when its connection does."""
    store: Any = at.store  # one that this process has opened, so it has a port
    return subprocess.Popen(
        [sys.executable, "-c", PREFACE.format(path=sys.path, address=f"{at.host}:{store.port}")],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def finish(ends: Ends) -> None:
    """Tell the drafter that it is not needed any more, and wait until it has left."""
    if ends.pair is not None and not ends.pair.ended:
        try:
            ends.pair.send(Closing())
        except ConnectionError:
            log.debug("the drafter had ended")
    if ends.child is not None:
        end(ends.child)
    if ends.pair is not None:
        ends.pair.close()


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process: it has a second to do so by itself."""
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
