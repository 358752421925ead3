"""What a drafter wants to see of the target reaches it when it drafts ahead: all of it, once, or not at all."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, random_prompt
from recorded import replaying

import specdec
from drafters import LookaheadDrafter, ModelDrafter, NgramDrafter, NullDrafter, RecyclingDrafter
from specdec import Tap
from specdec.channel import Inline, Process, Simulated, Thread
from specdec.channel.inline import InlineLink
from specdec.channel.sides import worker_for
from specdec.forecast import AllAccepted, DraftTopK
from specdec.messages import Outcome
from specdec.planner import Costs, Curve
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
NEW = 24
COSTS = Costs(target=Curve.flat("target", 5.0, 9), drafter=Curve.flat("drafter", 1.0, 99))


@pytest.fixture(scope="module")
def tiny_target():
    return FAMILIES["llama"]()


class Wrong(DraftTopK):
    """Prepares for outcomes that the drafter finds least likely."""

    def __call__(self, window, own_BMV, early):
        return super().__call__(window, -own_BMV, early)


class Reader(ModelDrafter):
    """Keeps all advice that it is given, by the call that gave it."""

    wants = (Tap(1), Tap(2))

    def begin(self, target, seq):
        self.given, self.calls = [], []
        super().begin(target, seq)

    def draft(self, context, noise):
        self.note("draft", context)
        return super().draft(context, noise)

    def look(self, context, window):
        self.note("look", context)
        return super().look(context, window)

    def branch(self, context, window, outcomes, noise):
        self.note("branch", context)
        return super().branch(context, window, outcomes, noise)

    def resume(self, context, window, own_BMV, noise):
        self.note("resume", context)
        return super().resume(context, window, own_BMV, noise)

    def note(self, call, context):
        self.calls.append((call, context.advice is not None))
        if context.advice is not None:
            self.given.append((call, context.advice))


def check_states(drafter, whole, missing=()):
    """Every position's state is there once, and is what a forward without a cache gives."""
    target = FAMILIES["llama"]()
    with torch.no_grad():
        for b, row in enumerate(whole):
            answer = target(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True)
            told = []
            for _, advice in drafter.given:
                for k, position in enumerate(advice.positions[b].tolist()):
                    if 0 <= position < len(row) and (position < len(row) - 1 or position not in told):
                        told.append(position)
                        for tap, state_BKX in advice.states.items():
                            expected_X = answer.hidden_states[tap.layer][0, position]
                            torch.testing.assert_close(state_BKX[b, k], expected_X, rtol=1e-4, atol=1e-4)
            sure = len(row) - 9  # nobody drafts behind a row's last round, nor looks behind the one before
            assert [p for p in told if p < sure] == [p for p in range(sure) if p not in missing]


def decoded(target, drafter, forecast, channel, verifier=None):
    result = specdec.generate(
        verifier or FullVerifier(target), drafter, ROWS, NEW, forecast=forecast, channel=channel
    )
    plain = specdec.generate(FullVerifier(target), NullDrafter(), ROWS, NEW)
    assert torch.equal(result.tokens, plain.tokens)
    return [[*row, *result.row(b)] for b, row in enumerate(ROWS)]


@pytest.mark.parametrize("channel", [Inline(), Thread(patience=60)], ids=lambda channel: type(channel).__name__)
@pytest.mark.parametrize("forecast", [DraftTopK(2), Wrong(1, branches=1)], ids=["hits", "misses"])
def test_every_state_comes_once_with_the_first_call_behind_its_round(tiny_target, forecast, channel):
    drafter = Reader(tiny_target, length=3)
    check_states(drafter, decoded(tiny_target, drafter, forecast, channel))
    first, *later = [call for call, _ in drafter.given]
    assert first == "draft"  # no window before it could be looked at
    assert set(later) == {"draft" if isinstance(forecast, Wrong) else "look"}


@pytest.mark.parametrize("forecast", [DraftTopK(2), Wrong(1, branches=1)], ids=["hits", "misses"])
def test_on_devices_the_look_behind_a_round_has_its_states(tiny_target, forecast, monkeypatch):
    drafter, verifier = Reader(tiny_target, length=3), replaying(tiny_target, [])
    monkeypatch.setattr(type(verifier.replay), "__call__", lambda self, part, places, *arguments: part(*arguments))
    check_states(drafter, decoded(tiny_target, drafter, forecast, Inline(), verifier))
    assert {call for call, _ in drafter.given} == {"look"}


@pytest.mark.parametrize("channel", [None, Inline(), Thread(patience=60)], ids=["devices", "inline", "thread"])
def test_who_wants_states_is_asked_nothing_before_the_first(tiny_target, channel):
    drafter = Reader(tiny_target, length=3)
    if channel is None:
        decoded(tiny_target, drafter, DraftTopK(2), Inline(), replaying(tiny_target, []))
    else:
        decoded(tiny_target, drafter, DraftTopK(2), channel)
    assert drafter.calls[0] == ("look" if channel is None else "draft", True)


class Moved(NgramDrafter):
    """Proposes one token or two, by the sign of the last state that it was given."""

    wants = (Tap(2),)

    def __init__(self):
        super().__init__(length=2, min_ngram=1)

    def draft(self, context, noise):
        draft = super().draft(context, noise)
        if context.advice is None:
            return specdec.Draft.empty(context.lengths).padded(2)
        last_B1 = context.advice.positions.argmax(1)[:, None]
        state_BK = context.advice.states[Tap(2)][..., 0]
        both_B1 = state_BK.gather(1, last_B1) > 0
        second_BN = torch.arange(2).expand_as(draft.tokens) == 1
        return replace(draft, parents=torch.where(second_BN & ~both_B1, -2, draft.parents))


def rounds_of(result):
    return [(entry.row, entry.nodes, entry.accepted, entry.committed) for entry in result.trace.rounds]


@pytest.mark.parametrize(
    "make",
    [Inline, lambda: Thread(patience=60), lambda: Process(patience=60)],
    ids=["inline", "thread", "process"],
)
def test_a_drafter_that_goes_by_states_drafts_as_in_turns(tiny_target, make):
    rows, channel = [[1, 2, 3, 1, 2], [4] * 11], make()
    options = {"max_new_tokens": 40, "forecast": None}
    expected = specdec.generate(FullVerifier(tiny_target), Moved(), rows, **options)
    counts = {entry.nodes for entry in expected.trace.rounds}
    assert counts == {0, 1, 2}, "its drafts do not depend on states"
    options["forecast"] = AllAccepted()
    result = specdec.generate(FullVerifier(tiny_target), Moved(), rows, channel=channel, **options)
    if isinstance(channel, Process):
        channel.close()
    assert torch.equal(result.tokens, expected.tokens) and not result.metrics.faults
    assert rounds_of(result) == rounds_of(expected)


def test_recorded_rounds_give_it_the_same_states(tiny_target):
    rows = [[1, 2, 3, 1, 2], [4] * 11]
    expected = specdec.generate(FullVerifier(tiny_target), Moved(), rows, 40)
    result = specdec.generate(replaying(tiny_target, []), Moved(), rows, 40, forecast=AllAccepted())
    assert rounds_of(result) == rounds_of(expected) and not result.metrics.faults


def test_on_virtual_time_it_is_told_too(tiny_target):
    drafter, verifier = Reader(tiny_target, length=3), FullVerifier(tiny_target)
    result = specdec.generate(
        verifier, drafter, ROWS[0], NEW, forecast=DraftTopK(2, branches=2), channel=Simulated(COSTS)
    )
    check_states(drafter, [[*ROWS[0], *result.row()]])


class Losing(InlineLink):
    """The outcome of one round, or only what it says of the target, gets lost."""

    def __init__(self, worker, round, whole):
        super().__init__(worker)
        self.round, self.whole, self.lost = round, whole, None

    def send(self, message):
        if isinstance(message, Outcome) and message.round == self.round:
            self.lost = message
            if self.whole:
                return
            message = replace(message, advice=None)
        super().send(message)


class Through(Inline):
    """A channel over such a link."""

    def __init__(self, round, whole):
        object.__setattr__(self, "make", lambda worker: Losing(worker, round, whole))

    @contextmanager
    def link(self, drafter, forecast, verifier, clock):
        object.__setattr__(self, "made", self.make(worker_for(drafter, forecast, verifier, clock)))
        yield self.made


@pytest.mark.parametrize("whole", [False, True], ids=["states", "outcome"])
@pytest.mark.parametrize("round", [0, 2])
def test_what_is_lost_is_missing_and_nothing_else(tiny_target, round, whole):
    drafter, channel = Reader(tiny_target, length=3), Through(round, whole)
    result = specdec.generate(
        FullVerifier(tiny_target), drafter, ROWS[0], NEW, forecast=DraftTopK(2), channel=channel
    )
    plain = specdec.generate(FullVerifier(tiny_target), NullDrafter(), ROWS[0], NEW)
    assert result.row() == plain.row()
    missing = channel.made.lost.advice.positions[0].tolist()
    check_states(drafter, [[*ROWS[0], *result.row()]], missing)
    assert bool(result.metrics.faults) == whole


def test_outcomes_that_are_overtaken_leave_their_states(tiny_target):
    """A drafter that hears of two rounds at once drafts for the later one, and has the states of both."""
    drafter, held = Reader(tiny_target, length=3), []

    class Busy(InlineLink):
        def send(self, message):
            held.append(message)
            if not isinstance(message, Outcome) or message.round % 2:
                self._worker.serve(held, self._answers.append)
                held.clear()

    class Jammed(Through):
        def __init__(self):
            object.__setattr__(self, "make", Busy)

    result = specdec.generate(
        FullVerifier(tiny_target), drafter, ROWS[0], NEW, forecast=DraftTopK(2), channel=Jammed()
    )
    check_states(drafter, [[*ROWS[0], *result.row()]])
    assert result.metrics.faults["drafter: no draft in time"] > 3


@pytest.mark.parametrize(
    ("make", "forecast"),
    [
        (lambda: RecyclingDrafter(nodes=6, top=2, levels=3), None),
        (lambda: RecyclingDrafter(nodes=6, top=2, levels=3), AllAccepted()),
        (lambda: LookaheadDrafter(2, 2, 1), AllAccepted()),
    ],
    ids=["recycling", "recycling ahead", "lookahead ahead"],
)
def test_recorded_rounds_tell_the_likeliest_tokens(tiny_target, make, forecast):
    rows, verifier, drafter = [[1, 2, 3, 1, 2], [4] * 11], replaying(tiny_target, []), make()
    expected = specdec.generate(FullVerifier(tiny_target), make(), rows, 20)
    for _ in range(1 if forecast else 2):  # the second generation plays what the first has recorded, and its table
        result = specdec.generate(verifier, drafter, rows, 20, forecast=forecast)
        assert torch.equal(result.tokens, expected.tokens) and not result.metrics.faults
        assert committed(result) == committed(expected)
    assert result.metrics.mean_accepted_tokens > 1.2


def committed(result):
    return [(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds]
