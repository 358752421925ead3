"""Drafter and target on two queues, from recordings: the tokens and rounds of the serial loop.

Without a GPU a recording is a list of tensor operations, and all is done when it is told.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from families import FAMILIES
from recorded import DRAFTERS, HEADS, ROWS, RULES, replaying

import specdec
from drafters import ModelDrafter, NgramDrafter
from specdec import Ratio, Sampling
from specdec.exit import Exit
from specdec.forecast import AllAccepted, Blend, DraftTopK, EarlyExitTopK
from specdec.overlap import Overlap
from verifiers import FullVerifier


class Wrong(DraftTopK):
    """Prepares for outcomes that the drafter finds least likely."""

    def __call__(self, window, own_BMV, early):
        return super().__call__(window, -own_BMV, early)


WRONG = Wrong(1, branches=1)
FORECASTS = [
    AllAccepted(),
    DraftTopK(4, branches=6),
    EarlyExitTopK(Exit(2, 4)),
    Blend(Exit(2, 4), top=4, branches=8),
    WRONG,
]


def committed(result):
    return [(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds]


@pytest.mark.parametrize(
    ("forecast", "name", "sampling", "rule"),
    [
        (forecast, name, *RULES[(index + turn) % len(RULES)])
        for turn, forecast in enumerate(FORECASTS)
        for index, name in enumerate(DRAFTERS)
        if (index + turn) % 4 == 0
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_tokens_and_rounds_are_those_of_the_serial_loop(forecast, name, sampling, rule):
    model, made = FAMILIES["llama"](), []
    verifier, drafter = replaying(model, made), DRAFTERS[name](FAMILIES["llama"]())
    options = {"max_new_tokens": 25, "sampling": sampling, "acceptance": rule}
    for seed, rows in enumerate(ROWS):  # the second generation plays what the first has recorded
        expected = specdec.generate(FullVerifier(model), DRAFTERS[name](model), rows, seed=seed, **options)
        result = specdec.generate(verifier, drafter, rows, seed=seed, forecast=forecast, **options)
        assert torch.equal(result.tokens, expected.tokens)
        assert not result.metrics.faults
        if name not in ("chain", "tree"):  # the draft models are two of the same weights
            assert committed(result) == committed(expected)
    assert made, "nothing was recorded"


@pytest.mark.parametrize("name", ["eagle 3", "streams", "mtp"])
def test_a_head_on_another_device_drafts_with_copies_of_what_it_borrows(name):
    model = FAMILIES["llama"]()
    verifier, drafter = replaying(model, []), HEADS[name](model)
    drafter.device = torch.device("cpu", 0)  # another name of the same device stands in for it
    expected = specdec.generate(FullVerifier(model), NgramDrafter(), ROWS[0], 25)
    for _ in range(2):  # the second generation plays what the first has recorded
        result = specdec.generate(verifier, drafter, ROWS[0], 25, forecast=DraftTopK(2))
        assert torch.equal(result.tokens, expected.tokens) and not result.metrics.faults
        borrowed = drafter.model._head.target
        kept = borrowed.head_weight if borrowed.lean is None else borrowed.lean.head
        assert kept is not verifier.model.network.head_weight and torch.equal(kept, model.lm_head.weight)
    here = specdec.generate(replaying(model, []), HEADS[name](model), ROWS[0], 25, forecast=DraftTopK(2))
    assert committed(result) == committed(here)
    with pytest.raises(ValueError, match="choose a forecast"):
        specdec.generate(verifier, drafter, ROWS[0], 25)


@pytest.mark.parametrize("name", ["eagle 3", "eagle", "streams", "mtp"])
def test_a_head_has_read_the_prompt_with_the_targets_states(name):
    """In turns and ahead, and when later rounds are played from recordings."""
    model = FAMILIES["llama"]()
    made = HEADS[name](model)
    caches = []
    for forecast in (None, WRONG):
        verifier, drafter = replaying(model, []), copy.deepcopy(made)
        for _ in range(2):  # the second generation plays what the first has recorded
            specdec.generate(verifier, drafter, [4] * 30, 12, forecast=forecast)
            cache = drafter.model.memory.cache
            caches.append([part[0, :, :29].clone() for part in (cache.keys[0], cache.values[0])])
    for other in caches[1:]:
        for first, second in zip(caches[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_drafts_that_were_prepared_are_used():
    model = FAMILIES["llama"]()
    for forecast in (DraftTopK(2), EarlyExitTopK(Exit(3, 128), branches=None)):
        verifier = replaying(model, [])
        result = specdec.generate(verifier, ModelDrafter(model, length=2), [1, 2, 3], 30, forecast=forecast)
        # A perfect drafter's own guesses always hit, and so do all tokens that there are.
        assert Overlap.of(result.trace).hit_rate == 1
        assert result.metrics.mean_accepted_tokens > 2.5


def test_padding_and_rows_that_have_ended_are_no_outcomes():
    model = FAMILIES["llama"]()
    verifier, drafter = replaying(model, []), ModelDrafter(FAMILIES["llama"](), length=3)
    stop = specdec.generate(FullVerifier(model), NgramDrafter(), ROWS[0], 25).row(1)[8]
    for _ in range(2):  # the second generation plays what the first has recorded
        trace = specdec.generate(verifier, drafter, ROWS[0], 25, forecast=DraftTopK(1), stop=stop).trace
        # Of one token per place only that behind the window is no token of the window: one per row that goes on.
        rounds = Counter(entry.row for entry in trace.rounds)
        assert len(set(rounds.values())) > 1, "all rows end together: the test shows nothing"
        going = [sum(count > index for count in rounds.values()) for index in range(len(trace.handovers))]
        assert [handover.branches for handover in trace.handovers] == going


def test_another_prompt_and_another_forecast_cost_no_token(tiny_llama):
    verifier, drafter = replaying(tiny_llama, []), ModelDrafter(tiny_llama, length=3)
    for forecast in (*FORECASTS, None, *FORECASTS[:2]):
        for prompt, new in (([1, 2], 20), ([3] * 40, 20), ([1] * 30, 70)):
            expected = specdec.generate(FullVerifier(tiny_llama), NgramDrafter(), prompt, max_new_tokens=new)
            result = specdec.generate(verifier, drafter, prompt, max_new_tokens=new, forecast=forecast)
            assert result.row() == expected.row()


@pytest.mark.parametrize("part", ["look", "branch", "resume"])
def test_a_drafter_that_raises_costs_its_drafts_only(tiny_llama, part):
    class Failing(ModelDrafter):
        calls = 0

    def fails(self, *arguments):
        Failing.calls += 1
        if Failing.calls % 3 == 0:
            raise RuntimeError("no")
        return getattr(ModelDrafter, part)(self, *arguments)

    setattr(Failing, part, fails)
    expected = specdec.generate(FullVerifier(tiny_llama), NgramDrafter(), [1, 2], 40, sampling=Sampling())
    result = specdec.generate(
        replaying(tiny_llama, []), Failing(tiny_llama, length=3), [1, 2], 40, forecast=DraftTopK(1)
    )
    assert result.row() == expected.row()


def test_a_draft_that_cannot_be_recorded_is_made_directly(tiny_llama, caplog):
    verifier, recorded = replaying(tiny_llama, []), []

    class Touchy(ModelDrafter):
        def resume(self, context, *arguments):
            if verifier.replay.recording:
                recorded.append(context)
                raise ValueError("not while recording")
            return super().resume(context, *arguments)

    drafter = Touchy(tiny_llama, length=3)
    for _ in range(2):  # nothing is prepared right, so that a draft is asked for in every round
        result = specdec.generate(verifier, drafter, [1, 2], 40, forecast=WRONG)
        assert result.metrics.mean_accepted_tokens > 3 and not result.metrics.faults
    assert len(recorded) == 1 and "resume cannot be recorded" in caplog.text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda drafts: replace(drafts, laws=drafts.laws[..., :-3]),
        lambda drafts: replace(drafts, tokens=drafts.tokens[:1]),
        lambda drafts: None,
    ],
)
def test_malformed_branches_cost_the_prepared_drafts_only(tiny_llama, spoil):
    class Spoiled(ModelDrafter):
        def branch(self, *arguments):
            return spoil(super().branch(*arguments))

    options = {"max_new_tokens": 20, "sampling": Sampling(temperature=1.0), "acceptance": Ratio()}
    expected = specdec.generate(FullVerifier(tiny_llama), ModelDrafter(tiny_llama, length=3), [1, 2], **options)
    result = specdec.generate(
        replaying(tiny_llama, []), Spoiled(tiny_llama, length=3), [1, 2], forecast=DraftTopK(2), **options
    )
    assert result.row() == expected.row()
    assert result.metrics.faults and not result.metrics.hit_rate


def test_a_mistake_when_decoding_begins_is_said_as_on_any_channel(tiny_llama):
    class Mistaken(ModelDrafter):
        def begin(self, target, seq):
            raise TypeError("no such argument")

    with pytest.raises(ValueError, match="cannot begin: TypeError: no such argument"):
        specdec.generate(replaying(tiny_llama, []), Mistaken(tiny_llama), [1], 8, forecast=DraftTopK(1))


def test_the_trace_holds_every_hand_over(tiny_llama):
    trace = specdec.generate(
        replaying(tiny_llama, []), ModelDrafter(tiny_llama, length=3), [1, 2], 40, forecast=DraftTopK(2)
    ).trace
    rounds = list(range(len(trace.handovers)))
    for lane in ("drafter.settle", "host.launch", "host.wait", "link.outcome", "link.draft"):
        assert sorted(span.round for span in trace.spans if span.lane == lane) == rounds
    for lane in ("drafter.look", "drafter.branch"):  # the last one prepares for a round that never comes
        assert sorted(span.round for span in trace.spans if span.lane == lane)[: len(rounds)] == rounds
    targets = sorted((span for span in trace.spans if span.lane == "target"), key=lambda span: span.start)
    for span in trace.spans:
        if span.lane == "link.draft":
            assert span.end == targets[span.round + 1].start
        assert span.seconds >= 0
