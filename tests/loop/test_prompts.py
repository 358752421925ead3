"""The round in which prompts are read, recorded as all others are."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from recorded import DRAFTERS, HEADS, RULES, eagle3, replaying

import specdec
from drafters import Eagle3Drafter, HybridDrafter, ModelDrafter, NgramDrafter
from drafters.feature import FeatureModel
from specdec.exit import Exit
from specdec.forecast import AllAccepted, DraftTopK, EarlyExitTopK
from specdec.runtime.model import CachedModel
from specdec.runtime.replay import Replay
from specdec.sequences import Sequences
from specdec.stage import WIDTHS, reading_width
from verifiers import FullVerifier

ROWS = [[[1, 2, 3, 1, 2], [9], [4] * 11], [[5, 6], [7, 8, 9], [1] * 4], [[8] * 20, [3, 4], [9, 8, 7]]]
# Those that draft models or the target's states have read for, and those that read nothing themselves.
READERS = {
    name: HEADS[name] for name in ("eagle", "eagle 3", "eagle 3 tree", "streams", "hybrid", "adapter", "medusa")
}
READERS |= {name: DRAFTERS[name] for name in ("plain", "suffix", "early exit tree")}


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """Here every network is taken for one that reads prompts in our kernels."""
    for kind in (CachedModel, FeatureModel):
        monkeypatch.setattr(kind, "steady", True)


def widths(made):
    """By part, the widths at which prompts were read in what was recorded."""
    found = set()
    for part, shape, _ in made:
        kind, parts = shape[1][0][:2]
        width = dict(parts)["reads"][1].value if kind is Sequences else 0
        if width:
            found.add((part.__name__, width))
    return found


def committed(result):
    return [(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds]


@pytest.mark.parametrize(
    ("name", "sampling", "rule"),
    [(name, *RULES[index % len(RULES)]) for index, name in enumerate(READERS)],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_prompts_are_read_from_recordings(name, sampling, rule):
    model, made = FAMILIES["llama"](), []
    verifier, drafter = replaying(model, made), READERS[name](model)
    options = {"max_new_tokens": 12, "sampling": sampling, "acceptance": rule}
    for seed, rows in enumerate(ROWS):  # the first is played directly, the second recorded, the third replayed
        expected = specdec.generate(FullVerifier(model), READERS[name](model), rows, seed=seed, **options)
        result = specdec.generate(verifier, drafter, rows, seed=seed, **options)
        assert torch.equal(result.tokens, expected.tokens) and committed(result) == committed(expected)
        assert not result.metrics.faults
    reads = (
        {"verify", "propose"} if name in ("eagle", "eagle 3", "eagle 3 tree", "streams", "hybrid") else {"verify"}
    )
    assert widths(made) == {(part, 64) for part in reads}


@pytest.mark.parametrize("forecast", [AllAccepted(), EarlyExitTopK(Exit(2, 4))], ids=["accepted", "exit"])
@pytest.mark.parametrize("name", ["eagle 3", "streams", "hybrid"])
def test_a_drafter_that_works_ahead_hears_of_a_recorded_prompt_and_records_its_own(name, forecast):
    model, made = FAMILIES["llama"](), []
    verifier, drafter = replaying(model, made), READERS[name](model)
    for rows in ROWS:
        expected = specdec.generate(FullVerifier(model), READERS[name](model), rows, max_new_tokens=12)
        result = specdec.generate(verifier, drafter, rows, max_new_tokens=12, forecast=forecast)
        assert torch.equal(result.tokens, expected.tokens) and not result.metrics.faults
        if forecast.exit is None:  # drafts that were prepared go on with states of the head's own
            assert committed(result) == committed(expected)
    assert widths(made) == {("verify", 64), ("propose" if name == "hybrid" else "look", 64)}


def test_a_recording_that_is_given_up_leaves_the_prompt_to_be_read():
    model = FAMILIES["llama"]()
    verifier, drafter = FullVerifier(model), HEADS["eagle 3"](model)

    def refuse(*_):
        for part in (verifier, drafter):  # as Python does while a device only takes notes
            part.model.memory.follows = True
        raise torch.OutOfMemoryError("no room")

    verifier.replay = Replay(refuse)
    for rows in ROWS:
        expected = specdec.generate(FullVerifier(model), HEADS["eagle 3"](model), rows, max_new_tokens=12)
        result = specdec.generate(verifier, drafter, rows, max_new_tokens=12)
        assert torch.equal(result.tokens, expected.tokens) and committed(result) == committed(expected)


class FailsFirst(Eagle3Drafter):
    """Cannot make the first draft of a generation."""

    def begin(self, target, seq):
        super().begin(target, seq)
        self.fresh = True

    def draft(self, context, noise):
        if self.fresh:
            self.fresh = False
            raise RuntimeError("not yet")
        return super().draft(context, noise)


def test_a_drafter_that_fails_over_the_prompt_reads_it_later():
    model = FAMILIES["llama"]()
    verifier, drafter = FullVerifier(model), FailsFirst(eagle3(model), length=3)

    def refuse(*_):
        raise RuntimeError("every part is played directly, and so once")

    verifier.replay = Replay(refuse)
    for rows in ROWS:
        expected = specdec.generate(
            FullVerifier(model), FailsFirst(eagle3(model), length=3), rows, max_new_tokens=12
        )
        result = specdec.generate(verifier, drafter, rows, max_new_tokens=12)
        assert torch.equal(result.tokens, expected.tokens) and committed(result) == committed(expected)
        assert sum(result.metrics.faults.values()) == 1


@pytest.mark.parametrize("forecast", [None, AllAccepted()], ids=["in turns", "ahead"])
def test_a_head_that_fails_over_the_prompt_leaves_no_slot_unread(forecast):
    def refuse(*_):
        raise RuntimeError("every part is played directly, and so once")

    model = FAMILIES["llama"]()
    verifier = FullVerifier(model)
    verifier.replay = Replay(refuse)
    drafter = HybridDrafter(NgramDrafter(length=4, min_ngram=2), FailsFirst(eagle3(model), length=3))
    specdec.generate(verifier, drafter, list(range(3, 40)), 12, forecast=forecast)
    read_S = drafter.models[0].memory.cache.keys[0][0].abs().amax((0, 2)) > 0
    assert read_S[:36].all()


class FailsLate(ModelDrafter):
    """Reads the prompt when it begins, fails much later, and notes at what width it was asked to read rows."""

    def begin(self, target, seq):
        super().begin(target, seq)
        self.widths = []

    def draft(self, context, noise):
        self.note(context)
        return super().draft(context, noise)

    def look(self, context, window):
        self.note(context)
        return super().look(context, window)

    def note(self, context):
        self.widths.append(context.reads)
        if len(self.widths) == 5:
            raise RuntimeError("lost its place")


@pytest.mark.parametrize("forecast", [None, DraftTopK(2)], ids=["in turns", "ahead"])
def test_rows_that_are_read_anew_after_a_late_fault_are_not_taken_for_the_prompt(forecast):
    def refuse(*_):
        raise RuntimeError("every part is played directly, and so once")

    model = FAMILIES["llama"]()
    verifier, drafter = FullVerifier(model), FailsLate(model, length=2)
    verifier.replay = Replay(refuse)
    result = specdec.generate(verifier, drafter, [1, 2, 3], 60, forecast=forecast)
    assert len(drafter.widths) > 8 and sum(result.metrics.faults.values()) == 1
    assert not any(drafter.widths[1:])


def test_short_replies_leave_all_parts_to_be_recorded(caplog):
    model = FAMILIES["llama"]()
    verifier, drafter = replaying(model, []), HEADS["eagle 3"](model)
    for new in (1, 1, 2, 24):
        specdec.generate(verifier, drafter, [5, 6, 7, 5, 6, 7, 9], new, forecast=DraftTopK(2))
    assert "cannot be recorded" not in caplog.text


def test_long_prompts_are_read_as_they_are():
    assert [reading_width(longest) for longest in (1, 63, 64, 1023)] == [64, 64, 96, 1024]
    assert reading_width(WIDTHS[-1]) == 0
    assert [reading_width(200, rows) for rows in (1, 4, 5)] == [256, 256, 0], "of all rows together"
