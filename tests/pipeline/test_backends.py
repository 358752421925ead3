"""What carries the messages between two processes. Where NCCL cannot be had, it is said before anything starts."""

from __future__ import annotations

import copy
import threading
import time
from datetime import timedelta

import pytest
import torch
from families import FAMILIES
from torch import distributed

import specdec
from drafters import ModelDrafter, NgramDrafter, NullDrafter
from specdec.channel import Process, pair
from specdec.channel.nccl import check_target
from specdec.channel.pair import DRAFTER, TARGET, Pair, Rendezvous
from specdec.forecast import DraftTopK
from verifiers import FullVerifier

CPU = torch.device("cpu")
ROWS = [[1, 2, 3, 1, 2], [9], [4] * 11]


@pytest.fixture
def gpus(monkeypatch):
    """As if there were so many GPUs, and NCCL."""

    def there(count):
        monkeypatch.setattr(distributed, "is_nccl_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("nccl", "backend=nccl needs a PyTorch with CUDA and a GPU: choose backend=gloo"),
        ("mpi", "backend must be one of gloo, nccl, not 'mpi'"),
    ],
)
def test_a_backend_that_cannot_be_had_is_refused(gpus, backend, told):
    gpus(0)
    with pytest.raises(ValueError, match=told):
        Process(backend=backend)


def test_a_target_on_the_cpu_has_no_nccl(gpus, tiny_target):
    gpus(2)
    channel = Process(backend="nccl")
    with pytest.raises(ValueError, match=r"the target is on cpu: choose backend=gloo"):
        specdec.generate(
            FullVerifier(tiny_target, runtime="eager"), NgramDrafter(), [1], forecast=DraftTopK(1), channel=channel
        )
    assert channel._link is None


def test_one_gpu_is_not_enough_for_both_sides_of_a_machine(gpus):
    gpus(1)
    with pytest.raises(ValueError, match=r"this machine has one: choose backend=gloo"):
        check_target(torch.device("cuda", 0), alone=True)
    check_target(torch.device("cuda", 0), alone=False)


def meet(monkeypatch, target, drafter):
    """Both sides of a connection, each with a place that is called so; what they raise or become."""
    monkeypatch.setattr(pair, "place", lambda device: target if device.index == TARGET else drafter)
    store, sides = distributed.HashStore(), {}

    def side(rank, name):
        device = None if name is None else torch.device("cuda", rank)
        try:
            sides[rank] = Pair(Rendezvous(store, "127.0.0.1"), "here", rank, device)
        except ValueError as error:
            sides[rank] = error

    threads = [threading.Thread(target=side, args=each) for each in ((TARGET, target), (DRAFTER, drafter))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sides


@pytest.mark.parametrize("drafter", ["GPU a", "cpu"])
def test_both_sides_hear_that_there_are_not_two_gpus(monkeypatch, drafter):
    for error in meet(monkeypatch, "GPU a", drafter).values():
        assert isinstance(error, ValueError)
        assert f"the target is on GPU a and the drafter on {drafter}: choose backend=gloo" in str(error)


@pytest.mark.parametrize(("target", "drafter"), [(None, "GPU b"), ("GPU a", None), (None, None)])
def test_gloo_carries_everything_unless_both_sides_name_a_gpu(monkeypatch, target, drafter):
    for side in meet(monkeypatch, target, drafter).values():
        assert isinstance(side, Pair) and side._lanes is None


def test_silence_is_no_fault(monkeypatch):
    monkeypatch.setattr(pair, "MEETING", timedelta(seconds=1))
    sides = meet(monkeypatch, None, None)
    time.sleep(1.5)
    sides[TARGET].send(specdec.messages.Ready(3))
    assert sides[DRAFTER].receive(10.0).generation == 3


def test_a_closing_ends_both_sides(monkeypatch):
    sides = meet(monkeypatch, None, None)
    sides[TARGET].send(specdec.messages.Closing())
    assert isinstance(sides[DRAFTER].waiting()[-1], specdec.messages.Closing)
    sides[DRAFTER].close()
    with pytest.raises(ConnectionError):
        sides[TARGET].receive(10.0)
    for side in sides.values():
        side.close()
        assert side.ended and not any(thread.is_alive() for thread in side._threads)


class Recorded:
    """Stands in for NCCL: both directions through memory."""

    ways = ([], [])

    def __init__(self, store, rank, device):
        self.rank, self.aborted = rank, False

    def send(self, content):
        self.ways[self.rank].append(content)

    def receive(self, size):
        content = self.ways[1 - self.rank].pop(0)
        assert len(content) == size
        return content

    def abort(self):
        self.aborted = True


def test_with_two_gpus_gloo_tells_the_size_and_nccl_carries_the_bytes(monkeypatch):
    monkeypatch.setattr(pair, "Lanes", Recorded)
    sides = meet(monkeypatch, "GPU a", "GPU b")
    message = specdec.messages.Ready(7, "what is said")
    # The size goes by gloo first; the bytes must be there when it has been heard.
    sides[TARGET]._lanes.send(content := pair.as_tensor(pair.encode(message)))
    sides[TARGET]._group.send([torch.tensor([len(content)])], DRAFTER, 0).wait()
    heard = sides[DRAFTER].receive(10.0)
    assert (heard.generation, heard.refusal) == (7, "what is said")


def on_the_second_gpu():
    """Made in the drafter's process."""
    return ModelDrafter(FAMILIES["llama"]().double().to("cuda:1"), length=3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_gpus_give_the_tokens_of_plain_decoding(tiny_target, backend):
    # In float64, so that no rounding difference reaches a decision.
    verifier = FullVerifier(copy.deepcopy(tiny_target).double().to("cuda:0"))
    channel = Process(patience=60, backend=backend)
    try:
        for _ in range(3):
            expected = specdec.generate(verifier, NullDrafter(), ROWS, 60)
            result = specdec.generate(
                verifier, on_the_second_gpu, ROWS, 60, forecast=DraftTopK(4), channel=channel
            )
            assert torch.equal(result.tokens, expected.tokens)
            assert not result.metrics.faults
            assert (channel._link._ends.pair._lanes is not None) == (backend == "nccl")
            assert any(any(handover.hit) for handover in result.trace.handovers)
    finally:
        channel.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_nccl_is_refused_where_both_sides_share_a_gpu(tiny_target):
    verifier = FullVerifier(copy.deepcopy(tiny_target).to("cuda:0"))
    with pytest.raises(ValueError, match="choose backend=gloo"):
        specdec.generate(
            verifier, NgramDrafter(), [1], forecast=DraftTopK(1), channel=Process(patience=60, backend="nccl")
        )
