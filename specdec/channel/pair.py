"""Two processes that send each other messages, by torch.distributed."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor, distributed

from specdec.channel.wire import decode, encode
from specdec.messages import Message, arriving, leaving

log = logging.getLogger(__name__)

TARGET, DRAFTER = 0, 1
FOREVER = timedelta(days=30)  # that nothing is said for a while is no fault
MEETING = timedelta(seconds=60)


class Pair:
    """One side of a connection over gloo.

    Args:
        store: where both sides meet.
        name: of this meeting; a drafter that comes back meets under another.
        rank: ``TARGET`` or ``DRAFTER``.
        host: address of this side's network interface.

    Raises:
        ConnectionError: the other side does not come.
    """

    def __init__(self, store: distributed.Store, name: str, rank: int, host: str) -> None:
        gloo: Any = distributed.ProcessGroupGloo
        options = gloo._Options()
        options._devices, options._timeout = [gloo.create_device(hostname=host)], MEETING
        try:
            self._group = gloo(distributed.PrefixStore(name, store), rank, 2, options)
        except RuntimeError as error:
            raise ConnectionError(f"the other side did not come: {error}") from error
        self._group._set_default_timeout(FOREVER)
        self._other = 1 - rank
        self._heard: SimpleQueue[Message | None] = SimpleQueue()
        self._end = ""
        self._listener = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._listener.start()

    def send(self, message: Message) -> None:
        """Let a message go. Raises ConnectionError where the other side is gone."""
        content = torch.frombuffer(bytearray(encode(leaving(message))), dtype=torch.uint8)
        self.send_bytes(content)

    def send_bytes(self, content: Tensor) -> None:
        """Let uint8 [size] go, whatever it is."""
        try:
            self._group.send([torch.tensor([len(content)])], self._other, 0).wait()
            self._group.send([content], self._other, 0).wait()
        except RuntimeError as error:
            raise ConnectionError(short(error)) from error

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
        """All messages that are there, at least one. Raises ConnectionError at the end."""
        messages = [self.receive(None)]
        while not self._heard.empty():
            messages.append(self.receive(None))
        return [message for message in messages if message is not None]

    def close(self) -> None:
        """Let go of the connection, once the other side has."""
        self._listener.join(5.0)
        self._group = None

    def _listen(self) -> None:
        try:
            while True:
                content = self._receive_bytes()
                try:
                    self._heard.put(arriving(decode(content)))
                except ValueError as error:  # what it was about is settled without it
                    log.warning("%s", error)
        except Exception as error:  # whatever ends it, who waits for a message must learn so
            self._end = short(error)
        finally:
            self._heard.put(None)

    def _receive_bytes(self) -> bytes:
        size = torch.empty(1, dtype=torch.int64)
        self._group.recv([size], self._other, 0).wait()
        content = torch.empty(int(size), dtype=torch.uint8)
        self._group.recv([content], self._other, 0).wait()
        return content.numpy().tobytes()


def short(error: Exception) -> str:
    """The first sentence of an error of gloo, without the place in its source."""
    message = str(error)
    return (message.partition("] ")[2] or message).split(". ")[0] or type(error).__name__
