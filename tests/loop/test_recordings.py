"""What is kept of recordings, and for how long. A recording is a list of tensor operations here, or a call."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from recorded import Operations

import specdec
from drafters import EarlyExitDrafter, ModelDrafter, NullDrafter
from drafters.shape import Shape
from specdec.exit import Exit
from specdec.forecast import DraftTopK, EarlyExitTopK
from specdec.runtime.held import Held, released
from specdec.runtime.itself import Itself, known_by
from specdec.runtime.replay import Replay
from verifiers import FullVerifier

FORECASTS = [None, DraftTopK(2), EarlyExitTopK(Exit(2, 4))]


def counting(model):
    """A verifier, and the parts that it has recorded by name. Nothing that is played is held here."""
    names = []

    def record(part, shape, leaves):
        names.append(part.__name__)
        return Operations(part, shape, leaves)

    verifier = FullVerifier(model)
    verifier.replay = Replay(record)
    return verifier, names


def kept(replay):
    """All recordings with the names of their parts, here and beside."""
    replays = [replay, *(side.replay for side in replay.sides.values())]
    parts = [(known.recording, key[0].__name__) for one in replays for key, known in one._known.items()]
    return {recording: name for recording, name in parts if recording is not None}


@pytest.mark.parametrize("forecast", FORECASTS, ids=lambda forecast: type(forecast).__name__)
def test_what_belongs_to_a_discarded_drafter_goes(tiny_llama, tiny_drafter, forecast):
    verifier, names = counting(tiny_llama)
    play = partial(specdec.generate, verifier, prompts=[1, 2], max_new_tokens=24, forecast=forecast)
    stays, drafter = (ModelDrafter(copy.deepcopy(tiny_drafter), length=length) for length in (2, 3))
    for _ in range(2):  # the first windows of all are met in one generation and recorded in the next
        play(drafter=stays)
    before = kept(verifier.replay)
    play(drafter=drafter)
    assert ("propose" if forecast is None else "resume") in {
        kept(verifier.replay)[new] for new in kept(verifier.replay).keys() - before.keys()
    }
    model = drafter.model
    left = [weakref.ref(thing) for thing in (drafter, model.network.module, model.memory, model.memory.cache)]
    del drafter, model
    gc.collect()
    assert [thing() for thing in left] == [None] * 4
    after = kept(verifier.replay)
    assert before.items() <= after.items(), "what belongs to the drafter that stays is kept"
    # A target that works by itself does not ask whose drafts they are.
    assert [after[new] for new in after.keys() - before.keys()] == ["verify"] * (forecast is not None)
    names.clear()
    play(drafter=stays)
    assert not names


def early_exit(_, length):
    return EarlyExitDrafter(1, length)


@pytest.mark.parametrize(
    ("make", "change", "forecast"),
    [
        (ModelDrafter, {"shape": Shape(2, 1, None)}, None),
        (ModelDrafter, {"shape": Shape(2, 1, None)}, DraftTopK(2)),
        (ModelDrafter, {"shape": Shape(2, 2, 4)}, None),
        (ModelDrafter, {"shape": Shape.asked(1, tree=[[0], [1], [0, 0]])}, None),
        (ModelDrafter, {"shape": Shape.asked(4, confidence=0.5)}, None),
        (early_exit, {"shape": Shape(2, 1, None)}, None),
        (early_exit, {"exit_layer": 2}, None),
    ],
    ids=["length", "length, ahead", "tree", "static tree", "confidence", "length of a view", "layer of a view"],
)
def test_a_drafter_that_was_changed_is_recorded_anew(tiny_llama, tiny_drafter, make, change, forecast):
    verifier, drafter, fresh = counting(tiny_llama)[0], make(tiny_drafter, length=4), make(tiny_drafter, length=4)

    def rounds(verifier, drafter):
        result = specdec.generate(verifier, drafter, [1, 2], max_new_tokens=25, forecast=forecast)
        return [(entry.drafted, entry.accepted) for entry in result.trace.rounds]

    before = rounds(verifier, drafter)
    vars(drafter).update(change)
    vars(fresh).update(change)
    assert rounds(verifier, drafter) == rounds(counting(tiny_llama)[0], fresh) != before


def test_an_equal_shape_is_the_same(tiny_llama, tiny_drafter):
    verifier, names = counting(tiny_llama)
    drafter = ModelDrafter(tiny_drafter, length=3)
    for _ in range(2):
        specdec.generate(verifier, drafter, [1, 2], max_new_tokens=20)
        drafter.shape = Shape(3, 1, None)
    assert sorted(names) == ["propose", "verify"]


def test_a_discarded_target_goes_without_being_collected(tiny_llama):
    verifier, _ = counting(copy.deepcopy(tiny_llama))
    specdec.generate(verifier, NullDrafter(), [1, 2], max_new_tokens=20)
    assert kept(verifier.replay)
    left = [weakref.ref(verifier), weakref.ref(verifier.replay), weakref.ref(verifier.model.memory.cache)]
    gc.collect()
    gc.disable()
    try:
        del verifier
        assert [thing() for thing in left] == [None] * 3
    finally:
        gc.enable()


def test_a_cache_that_has_moved_takes_its_recordings_along(tiny_llama):
    verifier, _ = counting(tiny_llama)
    specdec.generate(verifier, NullDrafter(), [1, 2], max_new_tokens=20)
    assert kept(verifier.replay)
    cache = weakref.ref(verifier.model.memory.cache)
    verifier.model.begin(3, 16)
    assert cache() is None and not kept(verifier.replay)


class Thing:
    """Equal to itself only."""


def double(value, thing):
    return value * 2


class Call:
    """In place of a recording: calls."""

    def __init__(self, part, shape, leaves):
        self._values = [part(*map(torch.clone, leaves), None)]

    def __call__(self, leaves):
        return leaves[0] * 2


def test_what_goes_while_a_part_is_recorded_takes_its_recordings_along_later():
    """A graph that is destroyed while another is made may spoil it."""
    things, seen = [Thing(), Thing()], []

    def record(*what):
        if len(seen) == 1:
            things.pop(0)
            seen.append([len(kept(replay)), len(kept(beside))])
        seen.append(what[0])
        return Call(*what)

    replay = Replay(record)
    beside = replay.beside()
    for one in (replay, beside):
        for _ in range(2):
            one(double, (), torch.ones(1), things[-1] if one is beside else things[0])
        assert not replay.recording and not beside.recording
    assert seen[1] == [1, 0], "the part of the thing that went was there to the end"
    replay(double, (), torch.ones(1), things[0])
    assert len(kept(replay)) == 0 and len(kept(beside)) == 1


class Scarce:
    """Records as long as nothing fails."""

    def __init__(self, error):
        self.error, self.tries = error, []

    def __call__(self, *what):
        self.tries.append(what[0].__name__)
        if self.error is not None:
            raise self.error
        return Call(*what)


def test_a_part_that_ran_out_of_memory_is_tried_ever_more_rarely():
    record, thing, times = Scarce(torch.OutOfMemoryError("no room")), Thing(), []
    replay = Replay(record)
    for time in range(1, 400):
        before = len(record.tries)
        assert replay(double, (), torch.ones(1), thing).item() == 2
        times += [time] * (len(record.tries) - before)
    assert times == [2, 35, 100, 229], "after 32 times without, then 64, then 128"
    record.error = None
    for _ in range(300):
        assert replay(double, (), torch.ones(1), thing).item() == 2
    assert len(record.tries) == 5 and len(kept(replay)) == 1


def exit_that_fails():
    """What PyTorch does where memory runs out inside a capture that is then given up."""
    try:
        try:
            raise torch.OutOfMemoryError("no room")
        finally:
            raise RuntimeError("the capture was given up")
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (exit_that_fails(), 2),
        (RuntimeError("CUDA error: out of memory"), 2),
        (RuntimeError("a number was read on the host"), 1),
        (ValueError("no"), 1),
    ],
    ids=["hidden", "CUDA", "read", "wrong"],
)
def test_only_what_may_pass_is_tried_again(error, tries):
    record, thing = Scarce(error), Thing()
    replay = Replay(record)
    for _ in range(60):
        replay(double, (), torch.ones(1), thing)
    assert len(record.tries) == tries


def test_a_part_that_ran_out_of_memory_once_is_recorded_in_the_end(tiny_llama):
    verifier, names = counting(tiny_llama)
    record, failed = verifier.replay._recorder.make, []

    def once(*what):
        if not failed:
            failed.append(what[0].__name__)
            raise torch.OutOfMemoryError("no room")
        return record(*what)

    verifier.replay._recorder.make = once
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=60)
    result = specdec.generate(verifier, NullDrafter(), [1, 2], max_new_tokens=60)
    assert result.row() == expected.row()
    assert failed == ["propose"] and names == ["verify", "propose"]


def test_a_thing_is_known_by_its_value_or_by_itself():
    class Unhashable:
        __hash__ = None

        def __eq__(self, other):
            return True

    one, other, odd = Thing(), Thing(), Unhashable()
    assert known_by(one) == known_by(one) != known_by(other)
    assert known_by((1, one)) == known_by((1, one)) != known_by((1, other))
    assert known_by(odd) == known_by(odd) != known_by(Unhashable())
    assert known_by("word") == "word" and known_by(None) == known_by(None) != known_by(0)
    bare = released((Held(one), "word"))
    assert bare == (Held(one), "word") and hash(bare) == hash((Held(one), "word"))
    place = id(one)
    del one
    again = Itself(other)
    again._place = place
    assert bare[0].identity.gone and bare[0].identity != again, "what comes to lie there is something else"
