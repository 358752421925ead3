"""A hybrid's parts are found by whoever has to know of their models, and draft as they do alone."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from recorded import HEADS, Operations, eagle, replaying

import specdec
from drafters import EagleDrafter, HybridDrafter, ModelDrafter, NgramDrafter
from specdec import Draft
from specdec.channel import Thread
from specdec.channel.sides import absent
from specdec.forecast import AllAccepted
from specdec.guard import Guarded
from specdec.runtime import models_of
from specdec.runtime.replay import Replay
from specdec.trace import Trace
from verifiers import FullVerifier

PROMPT, NEW = [1, 2, 3], 60
BESIDE = pytest.mark.parametrize("forecast", [None, AllAccepted()], ids=["in turns", "ahead"])


class Knowing:
    """Proposes the next tokens of an answer that it knows, behind every third token. It draws nothing."""

    wants = ()

    def __init__(self, answer, length, static):
        self.answer, self.size, self.static = torch.tensor([*answer, *[0] * 99]), length, static

    def begin(self, target, seq):
        self.asked = 0

    def draft(self, context, noise):
        self.asked += 1
        where_BN = context.lengths[:, None] + torch.arange(self.size)
        counts_B = torch.where(context.lengths % 3 == 0, self.size, 0)
        return Draft.chain(self.answer[where_BN], context.lengths, counts_B)


class Asked(ModelDrafter):
    """Counts how often it is asked."""

    asked = 0

    def draft(self, context, noise):
        self.asked += 1
        return super().draft(context, noise)


@pytest.fixture
def answer(tiny_llama):
    return [*PROMPT, *specdec.generate(FullVerifier(tiny_llama), NgramDrafter(), PROMPT, NEW).row()]


def rounds(verifier, drafter, forecast=None, rows=PROMPT):
    result = specdec.generate(verifier, drafter, rows, NEW, forecast=forecast)
    assert not result.metrics.faults
    return [(entry.drafted, entry.accepted) for entry in result.trace.rounds]


def accepted(entries):
    return [accepted for _, accepted in entries]


def test_all_models_are_found_once(tiny_llama, tiny_drafter):
    one, other = ModelDrafter(tiny_llama), ModelDrafter(tiny_drafter)
    nested = HybridDrafter(HybridDrafter(NgramDrafter(), one), HybridDrafter(other, ModelDrafter(one.model)))
    assert models_of(nested) == (one.model, other.model)
    assert models_of(HybridDrafter(NgramDrafter(), EagleDrafter(eagle(tiny_llama)))) == ()
    assert models_of(one) == (one.model,) and models_of(NgramDrafter()) == ()


@BESIDE
def test_what_was_recorded_on_a_cache_that_has_moved_is_not_played(tiny_llama, forecast):
    model = ModelDrafter(copy.deepcopy(tiny_llama), length=4)
    drafter, verifier = HybridDrafter(NgramDrafter(4, min_ngram=3), model), replaying(tiny_llama, [])
    for _ in range(3):
        rounds(verifier, drafter, forecast)
    specdec.generate(FullVerifier(tiny_llama), model, PROMPT, NEW)  # its second one is used elsewhere
    rows = [9, 8, 7, 6, 5]
    expected = rounds(FullVerifier(tiny_llama), drafter, rows=rows)
    for _ in range(3):
        assert accepted(rounds(verifier, drafter, forecast, rows)) == accepted(expected)


def test_drafts_are_recorded_again_once_the_states_have_moved(tiny_llama):
    made, drafter = [], HEADS["hybrid"](tiny_llama)
    verifier = replaying(tiny_llama, made)
    expected = [rounds(verifier, drafter) for _ in range(2)]
    before = len(made)
    drafter.second.model.begin(2, 16)
    expected += [rounds(verifier, drafter) for _ in range(2)]
    assert expected == expected[:1] * 4
    assert [what[0].__name__ for what in made[before:]] == ["verify", "propose"]


def test_it_runs_no_module_at_two_sides_at_once(tiny_llama):
    verifier = FullVerifier(tiny_llama)
    inner = HybridDrafter(NgramDrafter(), ModelDrafter(verifier.model.network.module))
    drafter = HybridDrafter(inner, ModelDrafter(verifier.model.network.module, length=2))
    absent(drafter, verifier)
    modules = [model.network.module for model in drafter.models]
    assert len(modules) == 2 and verifier.model.network.module not in modules
    result = specdec.generate(verifier, drafter, PROMPT, NEW, forecast=AllAccepted(), channel=Thread(patience=60))
    expected = specdec.generate(FullVerifier(tiny_llama), NgramDrafter(), PROMPT, NEW)
    assert result.row() == expected.row() and not result.metrics.faults


def test_after_a_failure_the_caches_of_all_parts_are_forgotten(tiny_llama, tiny_drafter):
    parts = [ModelDrafter(model, length=2) for model in (tiny_drafter, tiny_llama)]
    drafter = HybridDrafter(HybridDrafter(NgramDrafter(), parts[0]), parts[1])
    specdec.generate(FullVerifier(tiny_llama), drafter, PROMPT, NEW)
    for part in parts:
        part.model.memory.follows = True
        part.model.memory.lengths = torch.tensor([5])
    Guarded(drafter, Trace()).failed(RuntimeError("it died"))
    for part in parts:
        assert not part.model.follows and part.model.memory.lengths.tolist() == [0]


def test_the_forwards_of_all_models_are_timed(tiny_llama, answer):
    def spans(drafter):
        trace = specdec.generate(FullVerifier(tiny_llama), drafter, PROMPT, NEW).trace
        return sum(span.lane == "drafter.model" for span in trace.spans)

    alone = spans(ModelDrafter(copy.deepcopy(tiny_llama), length=4))
    assert (
        spans(HybridDrafter(Knowing(answer, 1, False), ModelDrafter(copy.deepcopy(tiny_llama), length=4)))
        > alone / 2
    )


@BESIDE
@pytest.mark.parametrize("kind", ["chain", "tree", "eagle"])
@pytest.mark.parametrize("static", [True, False], ids=["recorded", "played"])
def test_the_second_reads_all_that_the_first_was_right_about(tiny_llama, answer, forecast, kind, static):
    same = copy.deepcopy(tiny_llama)
    make = {
        "chain": partial(ModelDrafter, same, 3),
        "tree": partial(ModelDrafter, same, 3, 2),
        "eagle": partial(EagleDrafter, eagle(tiny_llama), 3),
    }[kind]
    expected = rounds(FullVerifier(tiny_llama), HybridDrafter(Knowing(answer, 9, static), make()))
    assert max(accepted(expected)) == 9, "the first is right about more than the second drafts"
    made = []
    verifier, drafter = replaying(tiny_llama, made), HybridDrafter(Knowing(answer, 9, static), make())
    for _ in range(3):
        assert accepted(rounds(verifier, drafter, forecast)) == accepted(expected)
    assert ("propose" in {what[0].__name__ for what in made}) == static


def test_a_hybrid_that_is_not_recorded_asks_its_second_where_it_is_needed(tiny_llama, answer):
    verifier = FullVerifier(tiny_llama)
    verifier.replay = Replay(Operations)
    for static in (False, True):
        first, second = Knowing(answer, 9, static), Asked(copy.deepcopy(tiny_llama), 3)
        rounds(verifier, HybridDrafter(first, second))
        assert (0 < second.asked < first.asked) if not static else (second.asked == first.asked)
