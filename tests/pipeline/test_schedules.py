"""Every schedule gives the tokens of the serial loop, and its rounds: only when drafts are made differs."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from families import perturbed, random_prompt

import specdec
from drafters import EarlyExitDrafter, ModelDrafter, NgramDrafter, NullDrafter, SuffixDrafter
from drafters.streaming import StreamingDrafter, Successors
from specdec import Block, Coupled, Match, Ratio, Sampling
from specdec.channel import Inline, Thread
from specdec.exit import Exit
from specdec.forecast import AllAccepted, Blend, DraftTopK, EarlyExitTopK
from specdec.overlap import Overlap
from specdec.runtime import load
from verifiers import FullVerifier

ROWS = [[1, 2, 3, 1, 2], [9], [4] * 11]
WARM = Sampling(temperature=0.7)
FORECASTS = [
    AllAccepted(),
    DraftTopK(4, branches=None),
    DraftTopK(4, branches=6),
    EarlyExitTopK(Exit(2, 4)),
    Blend(Exit(2, 4), top=4, branches=8),
]
RULES = [
    (Sampling(), Ratio()),
    (WARM, Ratio()),
    (WARM, Match()),
    (WARM, Coupled()),
    (Sampling(temperature=0.7, repetition_penalty=1.2), Block()),
]
STREAMS = Successors.of(torch.arange(128).roll(5), 3, "cpu")
DRAFTERS = {
    "ngram": lambda model: NgramDrafter(),
    "suffix": lambda model: SuffixDrafter(min_match=1),
    "early exit": lambda model: EarlyExitDrafter(),
    "early exit tree": lambda model: EarlyExitDrafter(width=2, nodes=5),
    "chain": lambda model: ModelDrafter(model),
    "streaming": lambda model: StreamingDrafter(load(model).model, STREAMS),
    "tree": lambda model: ModelDrafter(model, length=3, width=2),
}

PATHS = [[0], [2], [0, 0], [0, 1], [2, 0], [0, 1, 0]]
SHAPED = {
    "static tree": lambda model: ModelDrafter(model, tree=PATHS),
    "early exit static tree": lambda model: EarlyExitDrafter(tree=PATHS),
    "confident": lambda model: ModelDrafter(model, confidence=0.1),
}


def name_of(part):
    return part if isinstance(part, str) else type(part).__name__


def committed(result):
    return [(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds]


class Serial:
    """What the serial loop gave, which is the same for every forecast."""

    def __init__(self, target, draft):
        self.verifier, self.draft = FullVerifier(target), draft
        self.results = {}

    def generate(self, name, sampling, rule, **options):
        drafter = (DRAFTERS | SHAPED)[name](self.draft)
        return specdec.generate(
            self.verifier, drafter, ROWS, 24, sampling=sampling, acceptance=rule, seed=3, **options
        )

    def check(self, name, forecast, sampling, rule, channel):
        case = name, sampling, type(rule)
        if case not in self.results:
            self.results[case] = self.generate(name, sampling, rule)
        expected = self.results[case]
        result = self.generate(name, sampling, rule, forecast=forecast, channel=channel)
        assert torch.equal(result.tokens, expected.tokens)
        assert committed(result) == committed(expected)
        assert not result.metrics.faults


@pytest.fixture(scope="module")
def serial(tiny_target, tiny_draft):
    return Serial(tiny_target, tiny_draft)


@pytest.mark.parametrize(
    ("forecast", "name", "sampling", "rule", "channel"),
    [
        (forecast, name, *rule, (Inline(), Thread(patience=60))[(index + turn + part) % 2])
        for index, forecast in enumerate(FORECASTS)
        for turn, name in enumerate(DRAFTERS)
        for part, rule in enumerate(RULES)
        if (index + turn + part) % 5 < 3  # every two meet; every three would take long
    ],
    ids=name_of,
)
def test_tokens_and_rounds_are_those_of_the_serial_loop(serial, forecast, name, sampling, rule, channel):
    serial.check(name, forecast, sampling, rule, channel)


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize(
    ("forecast", "sampling", "rule"),
    [
        (DraftTopK(4, branches=6), Sampling(), Ratio()),
        (Blend(Exit(2, 4), top=4, branches=8), WARM, Ratio()),
        (AllAccepted(), WARM, Block()),
        (EarlyExitTopK(Exit(2, 4)), WARM, Coupled()),
    ],
    ids=name_of,
)
def test_trees_of_ranks_and_chains_that_end_early_too(serial, forecast, sampling, rule, name):
    serial.check(name, forecast, sampling, rule, Inline())


@pytest.mark.parametrize("forecast", [AllAccepted(), DraftTopK(2), EarlyExitTopK(Exit(3, 128), None)], ids=name_of)
def test_a_perfect_drafter_is_always_prepared(tiny_target, forecast):
    result = specdec.generate(
        FullVerifier(tiny_target), ModelDrafter(tiny_target, length=2), [1, 2, 3], 19, forecast=forecast
    )
    overlap = Overlap.of(result.trace)
    assert overlap.hit_rate == 1 and result.metrics.hit_rate == 1
    assert result.metrics.mean_accepted_tokens == 3
    assert overlap.fallbacks == 0 < overlap.handovers <= overlap.branches


def test_every_prepared_outcome_is_counted(tiny_target):
    result = specdec.generate(
        FullVerifier(tiny_target), ModelDrafter(tiny_target, length=2), ROWS[:2], 19, forecast=DraftTopK(2)
    )
    # Two rows, two tokens behind the prompt. In a window of two the likelier one is its own token at two places,
    # which leaves one at each of them and two behind the window.
    assert [handover.branches for handover in result.trace.handovers[:3]] == [2 * 2, 2 * 4, 2 * 4]


def test_padding_and_rows_that_have_ended_are_no_outcomes(tiny_target, tiny_draft):
    drafter = ModelDrafter(tiny_draft, length=3)
    result = specdec.generate(FullVerifier(tiny_target), drafter, ROWS, 24, forecast=DraftTopK(1))
    # Of one token per place only that behind the window is no token of the window: one per row that goes on.
    rounds = Counter(entry.row for entry in result.trace.rounds)
    assert len(set(rounds.values())) > 1, "all rows end together: the test shows nothing"
    going = [sum(count > index for count in rounds.values()) for index in range(len(result.trace.handovers))]
    assert [handover.branches for handover in result.trace.handovers] == going


@pytest.mark.parametrize("forecast", FORECASTS, ids=name_of)
def test_end_tokens_and_limits_inside_windows(tiny_target, forecast):
    verifier = FullVerifier(tiny_target)
    whole = specdec.generate(verifier, NullDrafter(), ROWS, max_new_tokens=30)
    stop = whole.row(1)[3]
    for options in ({"max_new_tokens": 30, "stop": stop}, {"max_new_tokens": 7}, {"max_new_tokens": 1}):
        expected = specdec.generate(verifier, NullDrafter(), ROWS, **options)
        result = specdec.generate(
            verifier, ModelDrafter(tiny_target, length=8), ROWS, forecast=forecast, **options
        )
        assert torch.equal(result.tokens, expected.tokens)
        assert not result.metrics.faults


@pytest.mark.parametrize("seed", [8, 30, 34, 38])  # there a tree of fewer levels would be another one
def test_a_pruned_tree_is_the_same_near_the_limit(tiny_target, seed):
    target = copy.deepcopy(tiny_target)
    with torch.no_grad():
        target.lm_head.weight.mul_(2)
    verifier, drafter = FullVerifier(target), ModelDrafter(perturbed(target, 0.1), length=5, width=3, nodes=6)
    rows = [random_prompt(length, seed + 1000 * row) for row, length in enumerate((4, 2, 6, 3))]
    options = {"max_new_tokens": 7, "sampling": Sampling(temperature=1.0), "seed": seed}
    expected = specdec.generate(verifier, drafter, rows, **options)
    result = specdec.generate(verifier, drafter, rows, forecast=DraftTopK(8, None), **options)
    assert torch.equal(result.tokens, expected.tokens)
    assert result.trace.rounds == expected.trace.rounds
    assert not result.metrics.faults


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_an_exit_that_the_target_does_not_have_is_refused(tiny_target, layer):
    with pytest.raises(ValueError, match="layer 1 to 3"):
        specdec.generate(FullVerifier(tiny_target), NgramDrafter(), [1], forecast=EarlyExitTopK(Exit(layer, 2)))


def test_more_tokens_than_there_are_cannot_be_named(tiny_target):
    with pytest.raises(ValueError, match="128 tokens"):
        specdec.generate(FullVerifier(tiny_target), NgramDrafter(), [1], forecast=EarlyExitTopK(Exit(2, 129)))
    with pytest.raises(ValueError, match="at least 1"):
        Exit(2, 0)


def test_another_vocabulary_is_refused(tiny_target, tiny_llama_of_97):
    for channel in (Inline(), Thread()):
        with pytest.raises(ValueError, match="vocabulary"):
            specdec.generate(
                FullVerifier(tiny_target),
                ModelDrafter(tiny_llama_of_97),
                [1],
                forecast=DraftTopK(1),
                channel=channel,
            )


@pytest.fixture
def tiny_llama_of_97():
    from families import FAMILIES

    return FAMILIES["llama"](vocab_size=97)


class Paused(ModelDrafter):
    """Its every fifth draft takes longer than anybody waits."""

    calls = 0

    def draft(self, context, noise):
        import time

        Paused.calls += 1
        time.sleep(0.4 if Paused.calls % 5 == 0 else 0)
        return super().draft(context, noise)


@pytest.mark.parametrize("rule", [Match(), Coupled()], ids=name_of)
def test_a_drafter_that_pauses_costs_no_token(tiny_target, tiny_draft, rule):
    options = {"max_new_tokens": 40, "sampling": WARM, "acceptance": rule, "seed": 5}
    verifier = FullVerifier(tiny_target)
    expected = specdec.generate(verifier, NullDrafter(), ROWS, **options)
    result = specdec.generate(
        verifier,
        Paused(tiny_draft, length=3),
        ROWS,
        forecast=DraftTopK(1, branches=1),
        channel=Thread(patience=0.1),
        **options,
    )
    assert torch.equal(result.tokens, expected.tokens)
    assert any("no draft in time" in fault for fault in result.metrics.faults)
