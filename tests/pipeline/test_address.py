"""A drafter that somebody else starts: it may come, go and come back, and nothing of the wait for it is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import distributed

import specdec
from drafters import ModelDrafter, NullDrafter
from specdec.channel import Process
from specdec.channel.pair import DRAFTER, Pair, Rendezvous
from specdec.channel.serve import ARRIVALS
from specdec.forecast import DraftTopK
from specdec.messages import Closing
from verifiers import FullVerifier

ROOT = Path(__file__).resolve().parents[2]
LONG = 60.0  # seconds that nothing here takes

HEAD = """
import sys
import specdec
from drafters import EarlyExitDrafter, ModelDrafter, NullDrafter
from families import FAMILIES
from specdec.channel import Process, serve_drafter
from specdec.forecast import DraftTopK
from verifiers import FullVerifier

address = sys.argv[1]
"""
DRAFTER_SIDE = HEAD + "serve_drafter(ModelDrafter(FAMILIES['llama'](), length=2), DraftTopK(1), address)"
BORROWER = HEAD + "serve_drafter(EarlyExitDrafter(), DraftTopK(1), address)"
TARGET_SIDE = """
target, channel = FullVerifier(FAMILIES["llama"]()), Process(address=address, meeting={meeting})
made = specdec.generate(target, NullDrafter(), [1, 2], 20, forecast=DraftTopK(1), channel=channel)
assert made.row() == specdec.generate(target, NullDrafter(), [1, 2], 20).row()
print(made.metrics.mean_accepted_tokens > 1)
"""


def script(text, address):
    """A process that runs a script; its output is kept."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", text, address], env=environment, **kept)


@contextmanager
def running(text, address):
    process = script(text, address)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left(process):
    """Exit status and what was said, once it has left by itself."""
    said, errors = process.communicate(timeout=LONG)
    assert "terminate" not in errors, errors
    return process.returncode, said, errors


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def check_free(address):
    """That nobody listens there any more, and another channel can."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2])))
    Rendezvous.of(address, opens=True)


@pytest.fixture
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def wait_for(condition):
    deadline = time.monotonic() + LONG
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_drafter_comes_dies_and_another_one_comes(tiny_target, address, no_thread_stays):
    verifier, channel = FullVerifier(tiny_target), Process(patience=LONG, address=address)
    expected = specdec.generate(verifier, NullDrafter(), [1, 2], 200)
    started, met = [script(DRAFTER_SIDE, address)], []

    def stream(_, tokens):
        ends = channel._link._ends
        met.append(0 if ends.pair is None else channel._link._met)  # which drafter it is
        if len(met) == 10:
            started[0].kill()
            wait_for(lambda: ends.pair.ended)
            started.append(script(DRAFTER_SIDE, address))
        elif len(met) == 15:  # by now the loss is known
            wait_for(lambda: ends.pair is not None)

    result = specdec.generate(
        verifier, NullDrafter(), [1, 2], 200, forecast=DraftTopK(1), channel=channel, stream=stream
    )
    channel.close()
    assert torch.equal(result.tokens, expected.tokens)
    assert sum("is gone" in fault for fault in result.metrics.faults) == 1
    assert met[0] == 1 and 0 in met[10:15] and met[-1] == 2
    assert any(any(entry.hit) for entry in result.trace.handovers[15:]), "the second one was of no use"
    started[0].communicate()
    assert left(started[1]) == (0, "", "")
    check_free(address)


def test_the_drafter_may_come_first_and_both_leave_quietly(address):
    with (
        running(DRAFTER_SIDE, address) as drafter,
        running(HEAD + TARGET_SIDE.format(meeting=60), address) as target,
    ):
        assert left(target) == (0, "True\n", "")
        assert left(drafter)[0] == 0
    check_free(address)


@pytest.mark.parametrize("closes", ["", "channel.close()"], ids=["exit", "close"])
def test_a_target_that_waits_in_vain_leaves_quietly(address, closes):
    with running(HEAD + TARGET_SIDE.format(meeting=0.1) + closes, address) as target:
        status, said, errors = left(target)
    assert (status, said) == (0, "False\n") and "has not come" in errors
    check_free(address)


def test_closing_waits_for_nobody_and_the_address_can_be_used_again(tiny_target, address, no_thread_stays):
    for _ in range(2):
        channel = Process(address=address, meeting=0.1)
        specdec.generate(FullVerifier(tiny_target), NullDrafter(), [1], 4, forecast=DraftTopK(1), channel=channel)
        assert any(thread.name == "meeting" for thread in threading.enumerate())
        channel.close()
        check_free(address)


def test_who_comes_while_the_channel_closes_is_told(tiny_target, no_thread_stays):
    at = Rendezvous(distributed.HashStore(), "127.0.0.1")
    channel = Process(address=at, meeting=0.1)
    specdec.generate(FullVerifier(tiny_target), NullDrafter(), [1], 4, forecast=DraftTopK(1), channel=channel)
    at.store.add(ARRIVALS, 1)
    closing = threading.Thread(target=channel.close)
    closing.start()
    pair = Pair(at, "1", DRAFTER)
    assert isinstance(pair.receive(LONG), Closing)
    pair.close()
    closing.join(LONG)
    assert not closing.is_alive()


def test_a_drafter_that_hangs_does_not_keep_the_channel_open(tiny_target, address, no_thread_stays):
    channel = Process(patience=LONG, address=address)
    with running(DRAFTER_SIDE, address) as drafter:
        specdec.generate(FullVerifier(tiny_target), NullDrafter(), [1], 4, forecast=DraftTopK(1), channel=channel)
        drafter.send_signal(signal.SIGSTOP)
        channel.close()
        check_free(address)
        drafter.send_signal(signal.SIGCONT)
        assert left(drafter)[0] == 0


def test_ctrl_c_ends_a_drafter_and_costs_no_token(tiny_target, address, no_thread_stays):
    verifier, channel, rounds = FullVerifier(tiny_target), Process(patience=LONG, address=address), []
    expected = specdec.generate(verifier, NullDrafter(), [1, 2], 60)
    with running(DRAFTER_SIDE, address) as drafter:

        def stream(_, tokens):
            rounds.append(tokens)
            if len(rounds) == 5:
                drafter.send_signal(signal.SIGINT)
                wait_for(lambda: channel._link._ends.pair.ended)

        result = specdec.generate(
            verifier, NullDrafter(), [1, 2], 60, forecast=DraftTopK(1), channel=channel, stream=stream
        )
        status, _, errors = left(drafter)
    channel.close()
    assert torch.equal(result.tokens, expected.tokens)
    assert status == -signal.SIGINT and errors.count("Traceback") == 1


def test_a_drafter_that_borrows_is_refused_from_elsewhere(tiny_target, address, no_thread_stays):
    channel = Process(address=address)
    with running(BORROWER, address) as drafter:
        with pytest.raises(ValueError, match="out of this drafter's reach"):
            specdec.generate(
                FullVerifier(tiny_target), NullDrafter(), [1], 4, forecast=DraftTopK(1), channel=channel
            )
        channel.close()
        assert left(drafter)[0] == 0


@pytest.mark.parametrize("wrong", ["localhost", ":29500", "localhost:", "localhost:port", "localhost:65536"])
def test_an_address_has_a_host_and_a_port(wrong):
    with pytest.raises(ValueError, match='address must be "host:port"'):
        Process(address=wrong)


def test_an_address_of_another_machine_is_told_at_once():
    with pytest.raises(ConnectionError, match=r"no connection at 192\.0\.2\.7:29613"):
        Rendezvous.of("192.0.2.7:29613", opens=True)


def test_an_address_that_is_taken_is_told(tiny_target, address):
    kept = Rendezvous.of(address, opens=True)
    with pytest.raises(ConnectionError, match=f"no connection at {address}"):
        specdec.generate(
            FullVerifier(tiny_target),
            ModelDrafter(tiny_target),
            [1],
            forecast=DraftTopK(1),
            channel=Process(address=address),
        )
    assert kept.store.check(["nothing"]) is False
