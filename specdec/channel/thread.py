"""The drafter's side in a thread of its own: two devices of one process, or two cores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from specdec.channel.sides import worker_for
from specdec.messages import Closing, Message, arriving, leaving, moved
from specdec.partner import Link, check_seconds
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.trace import Clock
from specdec.worker import DraftWorker

log = logging.getLogger(__name__)

LEAST = 1.0  # seconds to wait for the end: the next generation should find the drafter at rest


@dataclass(frozen=True)
class Thread:
    """The drafter's side works in a thread while the target's does.

    Attributes:
        patience: seconds to wait for a draft before a round goes without.

    Raises:
        ValueError: a patience that is not above 0, or without end.
    """

    patience: float = 1.0
    costs = None

    def __post_init__(self) -> None:
        check_seconds("patience", self.patience)

    @contextmanager
    def link(self, drafter: Drafter, forecast: Forecast, verifier: Verifier, clock: Clock) -> Iterator[Link]:
        """A connection for one generation. The thread ends with it; one that is stuck is left to itself."""
        made = ThreadLink(worker_for(drafter, forecast, verifier, clock))
        try:
            yield made
        finally:
            made.close(self.patience)


class ThreadLink:
    """Two queues and a thread."""

    def __init__(self, worker: DraftWorker) -> None:
        self._worker = worker
        self._asked: SimpleQueue[Message] = SimpleQueue()
        self._answers: SimpleQueue[Message | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="drafter", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Put it where the thread finds it. Raises ConnectionError if the thread has ended."""
        if not self._thread.is_alive():
            raise ConnectionError(f"the drafter's thread has ended ({self._error})")
        self._asked.put(arriving(moved(leaving(message), self._worker.device)))

    def receive(self, timeout: float | None) -> Message | None:
        """The next answer. Raises ConnectionError if the thread has ended without one."""
        try:
            answer = self._answers.get(timeout=timeout) if timeout != 0 else self._answers.get_nowait()
        except Empty:
            return None
        if answer is None:
            raise ConnectionError(f"the drafter's thread has ended ({self._error})")
        return answer

    def revive(self) -> bool:
        """Start another thread."""
        self._asked, self._answers = SimpleQueue(), SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="drafter", daemon=True)
        self._thread.start()
        return True

    def close(self, patience: float) -> None:
        """End the thread, once it has finished what it is doing; one that does not is left to itself."""
        self._asked.put(Closing())
        self._thread.join(max(patience, LEAST))
        if self._thread.is_alive():
            log.warning("the drafter's thread is still at work: it is left behind, and ends when it is done")

    def _serve(self) -> None:
        asked, answers = self._asked, self._answers
        try:
            while not isinstance((messages := waiting(asked))[-1], Closing):
                self._worker.serve(messages, lambda answer: answers.put(arriving(leaving(answer))))
        except Exception as error:
            self._error = error
        finally:
            answers.put(None)


def waiting(asked: SimpleQueue[Message]) -> list[Message]:
    """All messages that are there, at least one."""
    messages = [asked.get()]
    while not asked.empty():
        messages.append(asked.get())
    return messages
