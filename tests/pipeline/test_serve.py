"""A drafter's side that serves a target elsewhere: what comes is on its device, and a mistake there is heard."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import distributed

from specdec.channel.pair import TARGET, Pair, Rendezvous
from specdec.channel.serve import ARRIVALS, AWAITED, Service
from specdec.messages import Closing, Outcome


class Clerk:
    """A worker on another device that notes where tensors lie, and fails if it is to."""

    device = torch.device("meta")

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.places = fails, []

    def serve(self, messages, answer):
        self.places += [message.tokens.device for message in messages]
        if self.fails:
            raise RuntimeError("a mistake")


@pytest.fixture
def serving():
    """Starts a service in a thread and meets it: the target's end of the connection, and what came of it."""
    done = []

    def start(worker):
        at = Rendezvous(distributed.HashStore(), "127.0.0.1")
        at.store.set(AWAITED, "")

        def serve():
            try:
                done.append(Service(lambda: worker).serve(at))
            except RuntimeError as error:
                done.append(error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        at.store.wait([ARRIVALS])
        return Pair(at, "1", TARGET, None), thread, done

    return start


def outcome():
    one_B = torch.ones(1, dtype=torch.int64)
    return Outcome(1, 0, one_B, one_B[None], one_B, one_B, one_B, one_B == 0)


def test_messages_are_on_the_drafter_s_device(serving):
    worker = Clerk()
    target, thread, done = serving(worker)
    target.send(outcome())
    while not worker.places:
        thread.join(0.01)
    target.send(Closing())
    thread.join(30)
    assert worker.places == [torch.device("meta")] and done == [True]


def test_a_mistake_there_does_not_leave_the_target_waiting(serving):
    target, thread, done = serving(Clerk(fails=True))
    target.send(outcome())
    assert isinstance(target.receive(30), Closing)
    with pytest.raises(ConnectionError, match="closed"):
        target.receive(30)
    thread.join(30)
    assert isinstance(done[0], RuntimeError)
