"""Recorded rounds give the tokens of direct ones."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

import pytest
import torch
from families import FAMILIES
from recorded import DRAFTERS, HEADS, KINDS, ROWS, RULES, compared, replaying

import specdec
from drafters import (
    ModelDrafter,
    NgramDrafter,
    NullDrafter,
)
from specdec import Ratio, Sampling
from specdec.runtime.held import Held, flatten, rebuild
from specdec.runtime.replay import Replay
from verifiers import FullVerifier


@pytest.mark.parametrize(
    ("name", "kind", "sampling", "rule"),
    [
        (name, KINDS[(index + turn) % len(KINDS)], *rule)
        for index, name in enumerate(DRAFTERS)
        for turn, rule in enumerate(RULES)
        if name in ("chain", "tree", "early exit") or (index + turn) % 3 == 0
    ],
)
def test_tokens_and_rounds_are_those_of_direct_play(name, kind, sampling, rule):
    made = compared(FAMILIES[kind](), DRAFTERS[name], ROWS, sampling, rule)
    if name != "suffix":
        assert len(made) == 2, "a part was recorded twice, or never"


@pytest.mark.parametrize(
    ("name", "kind", "sampling", "rule"),
    [(name, KINDS[index % len(KINDS)], *RULES[index % len(RULES)]) for index, name in enumerate(HEADS)],
)
def test_heads_find_their_states_in_recordings(name, kind, sampling, rule):
    assert len(compared(FAMILIES[kind](), HEADS[name], ROWS, sampling, rule)) == 2


def test_states_of_other_numbers_of_rows_are_told_apart():
    batches = [ROWS[0], ROWS[1][:1], ROWS[1]]
    made = compared(FAMILIES["llama"](), HEADS["medusa"], batches, Sampling(), Ratio())
    assert len(made) == 6, "the target's cache moves with the number of rows: both parts are recorded anew"


def test_another_prompt_length_and_a_longer_row_cost_no_token(tiny_llama):
    made = []
    verifier, drafter = replaying(tiny_llama, made), ModelDrafter(tiny_llama, length=3)
    for prompt, new in (([1, 2], 20), ([3] * 40, 20), ([1] * 30, 70), ([1, 2], 20)):
        expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), prompt, max_new_tokens=new)
        assert specdec.generate(verifier, drafter, prompt, max_new_tokens=new).row() == expected.row()


def test_rows_that_outgrow_the_cache_get_a_larger_one(tiny_llama, monkeypatch):
    monkeypatch.setattr(sys.modules["specdec.decode"], "capacity", lambda slots: -(-slots // 16) * 16)
    made = []
    verifier, drafter = replaying(tiny_llama, made), ModelDrafter(tiny_llama, length=3)
    for new in (10, 60, 30):
        expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=new)
        assert specdec.generate(verifier, drafter, [1, 2], max_new_tokens=new).row() == expected.row()
    assert len(made) == 4, "the larger cache needs recordings of its own, a shorter row does not"


def test_drafters_that_take_turns_keep_their_recordings(tiny_llama):
    made, model = [], ModelDrafter(tiny_llama).model
    verifier = replaying(tiny_llama, made)
    drafters = [NullDrafter(), ModelDrafter(model, length=2), ModelDrafter(model, length=4)]
    for _ in range(3):
        for drafter in drafters:
            specdec.generate(verifier, drafter, [1, 2], max_new_tokens=24)
    assert len(made) == 2 * len(drafters)


def test_other_drafts_and_batches_are_told_apart(tiny_llama):
    verifier = replaying(tiny_llama, [])
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), ROWS[0], max_new_tokens=20)
    for drafter in (ModelDrafter(tiny_llama, length=2), NullDrafter(), ModelDrafter(tiny_llama, length=5)):
        for rows in (ROWS[0], ROWS[0][:1]):
            result = specdec.generate(verifier, drafter, rows, max_new_tokens=20)
            assert torch.equal(result.tokens, expected.tokens[: len(rows)])


def test_end_tokens_stop_a_row_though_the_host_hears_of_it_late(tiny_llama):
    plain = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=30)
    stop = plain.row()[9]
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=30, stop=stop)
    heard = []
    result = specdec.generate(
        replaying(tiny_llama, []), ModelDrafter(tiny_llama, length=3), [1, 2], max_new_tokens=30, stop=stop,
        stream=lambda row, tokens: heard.extend(tokens),
    )  # fmt: skip
    assert result.row() == expected.row() == heard


@pytest.mark.parametrize("name", [*DRAFTERS, *HEADS])
def test_no_draft_is_larger_than_its_drafter_says(tiny_llama, name):
    drafter, sizes = {**DRAFTERS, **HEADS}[name](tiny_llama), []
    draft = drafter.draft

    def noted(context, noise):
        sizes.append(draft(context, noise).size)
        return draft(context, noise)

    drafter.draft = noted
    specdec.generate(FullVerifier(tiny_llama), drafter, [1, 2] * 12, max_new_tokens=40)
    assert max(sizes) <= drafter.size
    assert max(sizes) == drafter.size or not drafter.static


def refuse(*what):
    raise torch.OutOfMemoryError("no room")


def test_what_cannot_be_recorded_is_played_directly_and_said_once(tiny_llama, caplog):
    verifier = FullVerifier(tiny_llama)
    verifier.replay = Replay(refuse)
    with caplog.at_level(logging.WARNING):
        result = specdec.generate(verifier, NullDrafter(), [1, 2], max_new_tokens=20)
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    assert result.row() == expected.row()
    assert len([r for r in caplog.records if "verify cannot be recorded" in r.message]) == 1


def test_a_draft_that_cannot_be_recorded_is_made_directly(tiny_llama, caplog):
    verifier, recorded = replaying(tiny_llama, []), []

    class Touchy(ModelDrafter):
        def draft(self, context, noise):
            if verifier.replay.recording:
                recorded.append(context)
                raise ValueError("not while recording")
            return super().draft(context, noise)

    drafter = Touchy(tiny_llama, length=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            result = specdec.generate(verifier, drafter, [1, 2], max_new_tokens=20)
            assert result.metrics.mean_accepted_tokens > 3 and not result.metrics.faults
    assert len(recorded) == 1, "a failure is not tried again"
    (record,) = caplog.records
    assert "propose cannot be recorded" in record.message and "not while recording" in record.message


def test_a_prompt_that_the_draft_model_cannot_read_costs_speed_only(tiny_llama, monkeypatch):
    drafter = ModelDrafter(tiny_llama, length=3)
    advance, calls = drafter.model.advance, []

    def once(*what, **options):
        calls.append(what)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return advance(*what, **options)

    monkeypatch.setattr(drafter.model, "advance", once)
    result = specdec.generate(replaying(tiny_llama, []), drafter, [1, 2], max_new_tokens=20)
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    assert result.row() == expected.row()
    assert result.metrics.faults == {"ModelDrafter: raised OutOfMemoryError: no room": 1}
    assert result.metrics.mean_accepted_tokens > 3, "the model is read at the first draft"


def test_a_drafter_that_reads_numbers_on_the_host_is_not_recorded(tiny_llama, caplog):
    class Peeking(ModelDrafter):
        def draft(self, context, noise):
            draft = super().draft(context, noise)
            return draft if int(context.lengths[0]) % 2 else specdec.Draft.empty(context.lengths).padded(4)

    rounds = []
    for verifier in (replaying(tiny_llama, []), FullVerifier(tiny_llama)):
        result = specdec.generate(verifier, Peeking(tiny_llama, length=4), [1, 2], max_new_tokens=40)
        rounds.append([entry.committed for entry in result.trace.rounds])
    assert rounds[0] == rounds[1]
    assert "propose cannot be recorded" in caplog.text


def test_drafters_with_other_taps_have_recordings_of_their_own(tiny_llama):
    seen = []

    class Tapping(NgramDrafter):
        def __init__(self, *layers):
            super().__init__(length=2)
            self.wants = tuple(specdec.Tap(layer) for layer in layers)

        def draft(self, context, noise):
            states = {} if context.advice is None else context.advice.states
            seen.append({tap.layer for tap in states} == {tap.layer for tap in self.wants})
            return super().draft(context, noise)

    verifier, expected = replaying(tiny_llama, []), None
    for layers in ((), (1,), (0, 2), ()):
        result = specdec.generate(verifier, Tapping(*layers), [1, 2, 1, 2], max_new_tokens=20)
        expected = expected or result.row()
        assert result.row() == expected and not result.metrics.faults
    assert all(seen)


def test_a_drafter_may_be_unhashable_and_its_model_may_be_anything(tiny_llama):
    @dataclass
    class Odd(NgramDrafter):
        model: dict = field(default_factory=dict)
        length: int = 3
        min_ngram: int = 1
        max_ngram: int = 3

    result = specdec.generate(replaying(tiny_llama, []), Odd(), [1, 2], max_new_tokens=20)
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    assert result.row() == expected.row() and not result.metrics.faults


def test_a_draft_model_that_failed_looks_at_the_rows_again(tiny_llama):
    drafter = ModelDrafter(tiny_llama, length=3)
    grow, calls = drafter.model.grow, []

    def failing(*what, **options):
        calls.append(what)
        if 3 <= len(calls) <= 5:
            raise RuntimeError("not now")
        return grow(*what, **options)

    drafter.model.grow = failing
    verifier = replaying(tiny_llama, [])
    verifier.replay = Replay(refuse)  # played directly, round by round
    result = specdec.generate(verifier, drafter, [1, 2], max_new_tokens=60)
    assert sum(result.metrics.faults.values()) == 3
    assert {entry.accepted for entry in result.trace.rounds[8:-1]} == {3}, "the draft model is the target"


def test_recordings_that_were_not_played_for_long_are_dropped(tiny_llama, monkeypatch):
    monkeypatch.setattr("specdec.runtime.replay.MOST", 4)
    verifier, drafter = replaying(tiny_llama, []), NullDrafter()
    for temperature in (0.5, 0.6, 0.7, 0.8, 0.9):
        for _ in range(2):
            specdec.generate(
                verifier, drafter, [1, 2], max_new_tokens=20, sampling=Sampling(temperature=temperature)
            )
    known = verifier.replay._known.values()
    assert len([part for part in known if part.recording is not None]) == 4 < len(known)


def test_a_value_comes_apart_and_together():
    value = (specdec.Draft.empty(torch.tensor([3])), {"a": torch.ones(2)}, "word", [torch.zeros(1)])
    leaves: list[torch.Tensor] = []
    shape = flatten(value, leaves)
    again = rebuild(shape, iter(leaves))
    assert again[0].base is value[0].base
    assert again[1]["a"] is value[1]["a"]
    assert again[2] == "word"
    other: list[torch.Tensor] = []
    assert (
        flatten((specdec.Draft.empty(torch.tensor([5])), {"a": torch.ones(2)}, "word", [torch.zeros(1)]), other)
        == shape
    )
    assert flatten(value[1:], []) != shape
    assert Held("word") != Held("other")
