"""The drafter's side in a process of its own: another device, or another machine."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import torch

from specdec.channel.child import Delivery, end, sharing_cores, started
from specdec.channel.ends import Ends, finish
from specdec.channel.nccl import check_backend, check_target
from specdec.channel.pair import TARGET, Pair, Rendezvous, host_and_port
from specdec.channel.serve import ARRIVALS, AWAITED, Assembly
from specdec.channel.sides import absent
from specdec.messages import Message
from specdec.partner import Link, check_seconds
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.runtime import CachedModel
from specdec.trace import Clock

log = logging.getLogger(__name__)

RESTARTS = 3  # of a drafter that dies again and again
GLANCE = 0.02  # seconds between two looks whether the drafter has come


class Process:
    """The drafter works in another process, over ``torch.distributed``.

    It is started when it is first needed, and again when it dies; it ends with ``close`` or with this process.

    Args:
        patience: seconds to wait for a draft before a round goes without.
        address: "host:port" of this machine, at which a drafter is awaited that somebody else starts
            (``specdec.channel.serve_drafter``), here or on another machine, or another place to meet it; None
            starts one here.
        meeting: seconds to wait for the drafter to come.
        backend: what carries the messages: "gloo", or "nccl" from GPU to GPU.

    Raises:
        ValueError: NCCL cannot be had, seconds that are not above 0, or without end, or no such address.
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
        if isinstance(address, str):
            host_and_port(address)
        self.patience, self._address, self._meeting, self._backend = patience, address, meeting, backend
        self._held: tuple[object, object, object] | None = None
        self._link: ProcessLink | None = None

    @contextmanager
    def link(
        self, drafter: Drafter | Callable[[], Drafter], forecast: Forecast, verifier: Verifier, clock: Clock
    ) -> Iterator[Link]:
        """A connection for one generation; the process stays for the next.

        A function that makes the drafter is called over there; a drafter is sent there, with its weights, and
        the target's network after it if it ``borrows`` and that is on the CPU. At an address the drafter is the
        one that comes, and this one is nobody's.
        Its spans go by the clock over there: the target's reaches this process only.

        Raises:
            ValueError: NCCL is wanted and a side lacks a GPU for it.
            ConnectionError: the address is taken, or not this machine's.
        """
        if self._link is None or self._held != (drafter, forecast, verifier):
            self.close()
            by_nccl = self._backend == "nccl"
            if by_nccl:
                check_target(verifier.device, alone=self._address is None)
            assembly, network = None, None
            if self._address is None:
                target = absent(drafter, verifier)
                network = target.model if verifier.device.type == "cpu" else None
                assembly = Assembly.of(drafter, forecast, target)
            at = self._address or "127.0.0.1:0"
            at = Rendezvous.of(at, opens=True) if isinstance(at, str) else at
            self._link = ProcessLink(assembly, network, at, self._meeting, verifier.device if by_nccl else None)
            self._held = (drafter, forecast, verifier)
        with sharing_cores(verifier.device if self._address is None else None):
            yield self._link

    def close(self) -> None:
        """End the drafter's process, and wait for nobody any more."""
        if self._link is not None:
            self._link.close()
        self._link = self._held = None


class ProcessLink:
    """A connection that can be made again.

    Args:
        assembly: what to start the drafter with; None waits for one.
        network: the target's, for a drafter that is started and borrows from it.
        at: where to meet.
        meeting: seconds to wait for the drafter to come.
        device: for NCCL; None talks by gloo.

    Raises:
        ValueError: NCCL is wanted, and the drafter has no GPU of its own.
    """

    def __init__(
        self,
        assembly: Assembly | None,
        network: CachedModel | None,
        at: Rendezvous,
        meeting: float,
        device: torch.device | None = None,
    ) -> None:
        self._assembly, self._network, self._device = assembly, network, device
        self._restarts, self._met, self._misfit = 0, at.store.add(ARRIVALS, 0), ""
        at.store.set(AWAITED, "")
        self._ends = Ends(at)
        self._finish = weakref.finalize(self, finish, self._ends)  # at the latest when this process ends
        self._begun = False
        self._meet(at).join(meeting)
        self._begun = True
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
        ends = self._ends
        if ends.at is None or (ends.meeting is not None and ends.meeting.is_alive()):
            return False
        if ends.pair is not None and not ends.pair.ended:
            return True
        if self._misfit:
            return False
        if self._assembly is None or self._restarts < RESTARTS:
            self._restarts += 1
            self._meet(ends.at)
        return False

    def close(self) -> None:
        """End the drafter's process, or let go one that somebody else has started; whoever comes is too late."""
        self._finish()

    @property
    def _connected(self) -> Pair:
        if self._ends.pair is None:
            raise ConnectionError("the drafter's process has not come")
        return self._ends.pair

    def _meet(self, at: Rendezvous) -> threading.Thread:
        """Start a drafter if that is ours to do, and wait for it without waiting."""
        self._ends.pair = None
        if self._assembly is not None:
            if self._ends.child is not None:
                end(self._ends.child)
            self._ends.child = started(at)
        self._ends.meeting = threading.Thread(target=self._await, args=(at,), name="meeting", daemon=True)
        self._ends.meeting.start()
        return self._ends.meeting

    def _await(self, at: Rendezvous) -> None:
        try:
            if self._arrived(at):
                self._ends.pair = Pair(at, str(self._met), TARGET, self._device)
        except ConnectionError as error:
            log.warning("%s", error)
        except ValueError as error:
            self._misfit = str(error)
            if self._begun:  # else it is raised
                log.warning("%s", error)

    def _arrived(self, at: Rendezvous) -> bool:
        """Wait for a drafter, which is handed its work where it was started here; whether one has come."""
        child, go_on = self._ends.child, None
        with ExitStack() as stack:
            if child is not None and self._assembly is not None:
                delivery = stack.enter_context(closing(Delivery(child, at, self._assembly, self._network)))
                go_on = delivery.go_on
            while (arrived := at.store.add(ARRIVALS, 0)) <= self._met:
                if self._ends.over.is_set() or (child is not None and child.poll() is not None):
                    return False
                if go_on is not None:
                    go_on()
                self._ends.over.wait(GLANCE)
        self._met = arrived
        return True
