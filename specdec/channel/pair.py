"""Two processes that send each other messages, by torch.distributed."""

from __future__ import annotations

import logging
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor, distributed

from specdec.channel.nccl import FOREVER, Lanes, check_places, place
from specdec.channel.wire import decode, encode
from specdec.messages import Closing, Message, arriving, leaving

log = logging.getLogger(__name__)

TARGET, DRAFTER = 0, 1
MEETING = timedelta(seconds=60)
COMING = timedelta(minutes=5)  # for the place to meet to be opened
PARTING = 5.0  # seconds for the other side to let go, too
UNUSED = 1  # tag of operations that are never sent


@dataclass(frozen=True)
class Rendezvous:
    """Where two sides meet.

    Attributes:
        store: that both reach.
        host: address of this side's network interface.
    """

    store: distributed.Store
    host: str

    @classmethod
    def of(cls, address: str, opens: bool) -> Rendezvous:
        """At "host:port" of one side, which opens it, with port 0 at any; the other comes, and may come first.

        Raises:
            ValueError: no such address.
            ConnectionError: it cannot be opened, or nobody does for five minutes.
        """
        host, port = host_and_port(address)
        try:
            mine = own(host) if opens else interface(host)
        except OSError as error:  # at once: a store would try for minutes
            raise ConnectionError(f"no connection at {address}: {error}") from error
        try:
            store = distributed.TCPStore(host, port, is_master=opens, wait_for_workers=False, timeout=COMING)
        except RuntimeError as error:
            raise ConnectionError(f"no connection at {address}: {short(error)}") from error
        return cls(store, mine)


class Pair:
    """One side of a connection: gloo, and on GPUs NCCL for all that is long.

    Args:
        at: where both sides meet.
        name: of this meeting; a drafter that comes back meets under another.
        rank: ``TARGET`` or ``DRAFTER``.
        device: for NCCL, if the other side names one too; else gloo carries everything.

    Raises:
        ConnectionError: the other side does not come.
        ValueError: NCCL is wanted, and there are not two GPUs for it.
    """

    def __init__(self, at: Rendezvous, name: str, rank: int, device: torch.device | None = None) -> None:
        self._other, self._lanes, self._patience = 1 - rank, None, MEETING
        store = distributed.PrefixStore(name, at.store)
        try:
            self._group = gloo(store, rank, at.host)
            if self._by_nccl(rank, "" if device is None else place(device)) and device is not None:
                self._lanes = Lanes(store, rank, device)
        except RuntimeError as error:
            raise ConnectionError(f"the other side did not come: {short(error)}") from error
        self._patience = FOREVER  # an operation that waits for longer ends the connection
        self._heard: SimpleQueue[Message | None] = SimpleQueue()
        self._said: SimpleQueue[Tensor | None] = SimpleQueue()
        self._end = ""
        # Sending waits until the other side receives: who is slow there must not hold up this side.
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self._listen, self._speak)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        """Let a message go; nothing is waited for. Raises ConnectionError where the other side is gone."""
        self.send_bytes(encode(leaving(message)))

    def send_bytes(self, content: bytes) -> None:
        """Let bytes go, whatever they are."""
        if self._end:
            raise ConnectionError(self._end)
        self._said.put(as_tensor(content))

    @property
    def ended(self) -> bool:
        """Whether the other side is gone."""
        return bool(self._end)

    def receive(self, timeout: float | None) -> Message | None:
        """The next message, None if there is none in so many seconds. Raises ConnectionError at the end."""
        try:
            message = self._heard.get(timeout=timeout) if timeout != 0 else self._heard.get_nowait()
        except Empty:
            return None
        if message is None:
            self._heard.put(None)
            raise ConnectionError(self._end)
        return message

    def waiting(self) -> list[Message]:
        """All messages that are there, at least one, none behind a closing. Raises ConnectionError at the end."""
        messages = [self.receive(None)]
        while not self._heard.empty() and not isinstance(messages[-1], Closing):
            messages.append(self.receive(None))
        return [message for message in messages if message is not None]

    def close(self) -> None:
        """Let go of the connection, once the other side has or wants to; one that hangs is not waited for."""
        self._said.put(None)
        for thread in self._threads:
            thread.join(PARTING)
        if any(thread.is_alive() for thread in self._threads):
            self._break()
        for thread in self._threads:
            thread.join(PARTING)
        self._group = self._lanes = None

    def _break(self) -> None:
        """End what is under way, of which gloo knows one way only: an operation that comes too late."""
        with suppress(RuntimeError):
            self._group.recv([torch.empty(1)], self._other, UNUSED).wait(timedelta(milliseconds=1))

    def _by_nccl(self, rank: int, mine: str) -> bool:
        """Whether both sides name a place; they do so in turns, since who sends waits for who receives."""
        places = ["", ""]
        for sender in (TARGET, DRAFTER):
            if sender == rank:
                places[sender] = mine
                self._send_bytes(as_tensor(mine.encode() or b" "))
            else:
                places[sender] = self._receive_bytes().decode().strip()
        if all(places):
            check_places(*places)
        return all(places)

    def _listen(self) -> None:
        try:
            while not self._end:
                content = self._receive_bytes()
                try:
                    message = arriving(decode(content))
                except ValueError as error:  # what it was about is settled without it
                    log.warning("%s", error)
                    continue
                if isinstance(message, Closing):  # nothing follows, and who listens holds the connection
                    self._end = "it was closed"
                self._heard.put(message)
        except Exception as error:  # whatever ends it, who waits for a message must learn so
            self._end = short(error)
        finally:
            if self._lanes is not None:
                self._lanes.abort()
            self._heard.put(None)
            self._said.put(None)

    def _speak(self) -> None:
        try:
            while (content := self._said.get()) is not None:
                self._send_bytes(content)
        except RuntimeError as error:
            self._end = self._end or short(error)
            self._heard.put(None)

    def _send_bytes(self, content: Tensor) -> None:
        self._group.send([torch.tensor([len(content)])], self._other, 0).wait(self._patience)
        if self._lanes is None:
            self._group.send([content], self._other, 0).wait(self._patience)
        else:
            self._lanes.send(content)

    def _receive_bytes(self) -> bytes:
        size = torch.empty(1, dtype=torch.int64)
        self._group.recv([size], self._other, 0).wait(self._patience)
        if self._lanes is not None:
            return self._lanes.receive(int(size)).numpy().tobytes()
        content = torch.empty(int(size), dtype=torch.uint8)
        self._group.recv([content], self._other, 0).wait(self._patience)
        return content.numpy().tobytes()


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of "host:port". Raises ValueError where it has none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ValueError(f'address must be "host:port", not {address!r}')
    return host, int(port)


def own(host: str) -> str:
    """The host, if it is this machine. Raises OSError where it is another, or none."""
    family, kind, protocol, _, (name, _, *rest) = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind((name, 0, *rest))
    return host


def interface(host: str) -> str:
    """Address of the network interface by which a host is reached; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def as_tensor(content: bytes) -> Tensor:
    """uint8 [size]."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def gloo(store: distributed.Store, rank: int, host: str) -> Any:
    """A group of two over gloo, that has a while to meet."""
    made: Any = distributed.ProcessGroupGloo
    options = made._Options()
    options._devices, options._timeout = [made.create_device(hostname=host)], MEETING
    return made(store, rank, 2, options)


def short(error: Exception) -> str:
    """The first sentence of an error of gloo, without the place in its source."""
    message = str(error)
    return (message.partition("] ")[2] or message).split(". ")[0] or type(error).__name__
