"""Virtual time is the planner's, the tokens are plain decoding's, and the machine has no say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import specdec
from drafters import ModelDrafter, NgramDrafter, NullDrafter
from drafters.synthetic import SyntheticDrafter
from specdec import planner
from specdec.channel import Simulated
from specdec.exit import Exit
from specdec.forecast import AllAccepted, Blend, DraftTopK, EarlyExitTopK
from specdec.metrics import positions
from specdec.overlap import Overlap
from specdec.planner import Acceptance, Branching, Costs, Curve
from verifiers import FullVerifier

COSTS = Costs(
    target=Curve("target", [(1, 5.0), (4, 5.5), (9, 7.0)]),
    drafter=Curve("drafter", [(1, 0.6), (16, 1.1), (40, 2.0)]),
    look=0.7,
    exit_head=0.4,
    host=0.2,
    early=0.13,
    final=0.3,
)
# What has to hide is short here, as long as the target, and longer.
PAIRS = {
    "fast drafter": COSTS,
    "slow drafter": replace(COSTS, drafter=Curve("drafter", [(1, 2.0), (40, 4.0)])),
    "slow look": replace(COSTS, look=6.5),
    "streaming drafter": replace(COSTS, tokens_per_step=1.7),
    "nothing but work": replace(COSTS, look=0, exit_head=0, host=0, early=0, final=0),
}
ROOM = 300


@dataclass(frozen=True)
class Spoiled:
    """An exit that is wrong in some states, so that not every outcome is prepared."""

    def __call__(self, state):
        return torch.where(state[..., :1] > 0.02, -state, state)


FORECASTS = {
    "serial": None,
    "enumeration": DraftTopK(2, branches=6),
    "pearl": AllAccepted(),
    "mirror": EarlyExitTopK(Exit(1, 3, Spoiled()), branches=None),
    "mirror with few branches": EarlyExitTopK(Exit(1, 3, Spoiled()), branches=3),
    "blend": Blend(Exit(1, 3, Spoiled()), top=1, branches=3, weight=0.9),
}


@pytest.fixture(scope="module")
def target():
    return FullVerifier("synthetic/tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def drafter():
    return SyntheticDrafter("synthetic/tiny", 0.7, 3, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def plain(target):
    return specdec.generate(target, NullDrafter(), [5], ROOM)


def run(target, drafter, forecast, costs, tokens=ROOM):
    return specdec.generate(target, drafter, [5], tokens, forecast=forecast, channel=Simulated(costs))


def steady(trace, window):
    """Rounds with whole windows, none of them the last: where they begin and end in the list of rounds."""
    whole = [index for index, entry in enumerate(trace.rounds) if entry.nodes == window]
    return 2, whole[-1] if whole[-1] < len(trace.rounds) - 1 else whole[-1] - 1


def measured(trace, window):
    """Milliseconds per token of the steady rounds, their acceptance, and their hit rate."""
    first, last = steady(trace, window)
    assert last - first > 40
    ends = sorted(span.end for span in trace.spans if span.lane == "target")
    rounds = trace.rounds[first : last + 1]
    assert all(entry.nodes == window for entry in rounds)
    taken = 1e3 * (ends[last] - ends[first - 1])
    hits = [handover.hit[0] for handover in trace.handovers[first - 1 : last]]
    rate = sum(hits) / len(hits) if hits else None
    acceptance = Acceptance.of(positions(specdec.Trace(rounds=rounds)))
    return taken / sum(entry.committed for entry in rounds), acceptance, rate


def law(costs, result, forecast, window=3):
    """Measured milliseconds per token, and what the planner makes of the same acceptance and hits."""
    ms, acceptance, rate = measured(result.trace, window)
    if forecast is None:
        return ms, planner.serial(costs, acceptance, window)
    exit = None if forecast.exit is None else 0.5
    count = getattr(forecast, "branches", 1) or (window + 1) * forecast.exit.top
    schedule = planner.enumeration if exit is None else planner.mirror
    return ms, schedule(costs, acceptance, window, Branching(count, rate, exit))


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", FORECASTS)
def test_time_is_the_laws_and_tokens_are_plain_decodings(target, drafter, plain, name, pair):
    costs, forecast = PAIRS[pair], FORECASTS[name]
    result = run(target, drafter, forecast, costs)
    ms, timing = law(costs, result, forecast)
    assert ms == pytest.approx(timing.ms_per_token, rel=1e-6)
    if forecast is not None:  # some hit and some do not, else the law would be half tested
        assert 0.1 < measured(result.trace, 3)[2] < 1
    assert torch.equal(result.tokens, plain.tokens) and not result.metrics.faults


OTHERS = {
    "target": Curve("target", [(1, 5.0), (4, 5.6), (9, 7.0)]),
    "drafter": Curve("drafter", [(1, 0.7), (16, 3.1), (40, 4.0)]),
    "tokens_per_step": 3.0,
    "look": 6.0,
    "exit_head": 0.5,
    "host": 0.3,
    "early": 0.2,
    "final": 0.4,
}


@pytest.mark.parametrize("cost", OTHERS)
def test_every_cost_tells(target, drafter, cost):
    forecast = FORECASTS["mirror"]
    slow = replace(COSTS, drafter=PAIRS["slow drafter"].drafter)
    result = run(target, drafter, forecast, replace(slow, **{cost: OTHERS[cost]}))
    ms, timing = law(slow, result, forecast)
    assert abs(ms - timing.ms_per_token) > 0.01


@pytest.mark.parametrize("name", FORECASTS)
def test_figures_of_the_trace(target, drafter, name):
    forecast = FORECASTS[name]
    costs = replace(COSTS, early=0.9)  # long enough to tell whether it is the target's work
    result = run(target, drafter, forecast, costs)
    overlap, metrics = Overlap.of(result.trace), result.metrics
    timing = law(costs, result, forecast)[1]
    rounds = overlap.rounds
    assert overlap.target + overlap.target_idle == pytest.approx(overlap.seconds)
    # The first and the last rounds are not like the others.
    assert 1e3 * overlap.target / rounds == pytest.approx(timing.target, rel=0.02)
    assert 1e3 * overlap.exposed / rounds == pytest.approx(timing.exposed, rel=0.1, abs=0.05)
    assert 1e3 * overlap.rendezvous / rounds == pytest.approx(timing.overhead, rel=0.02)
    prefill = costs.plain + (0 if forecast is None or forecast.exit is None else costs.early + costs.exit_head)
    assert metrics.seconds == pytest.approx(overlap.seconds + prefill / 1e3)
    assert metrics.host_seconds == pytest.approx(
        metrics.seconds - metrics.target_seconds - metrics.exposed_seconds
    )
    assert metrics.hidden is None or 0 < metrics.hidden <= 1


def test_lanes_are_those_of_devices(target, drafter):
    result = run(target, drafter, FORECASTS["mirror"], COSTS)
    lanes = {span.lane for span in result.trace.spans}
    ours = {f"drafter.{what}" for what in ("look", "branch", "draft", "settle")}
    ours |= {f"link.{what}" for what in ("early", "outcome", "draft")}
    assert lanes == {"target", "target.exit", "target.hint", "host.send", "host.wait", *ours}
    ways = [1e3 * span.seconds for span in result.trace.spans if span.lane == "link.outcome"]
    assert min(ways) == pytest.approx(COSTS.final)  # a drafter that is at work hears it later
    waits = [1e3 * span.seconds for span in result.trace.spans if span.lane == "target.hint"]
    assert waits == pytest.approx([COSTS.early] * len(waits)) and len(waits) == len(result.trace.handovers) + 1
    spoken = sorted(span.start for span in result.trace.spans if span.lane == "target.exit")[1:-3]
    begun = sorted(span.start for span in result.trace.spans if span.lane == "target")[1:-3]
    for at, said in zip(begun[1:], spoken[1:], strict=True):
        assert 1e3 * (said - at) == pytest.approx(COSTS.prefix(3, 0.5) + COSTS.exit_head)


def test_plain_decoding_takes_plain_steps(target):
    result = run(target, NullDrafter(), None, COSTS, 20)
    assert result.metrics.seconds == pytest.approx(20 * 5e-3)
    assert {span.lane for span in result.trace.spans} == {"target", "drafter"}


def test_equal_runs_take_equal_times(target, drafter):
    first, again = (run(target, drafter, FORECASTS["mirror"], COSTS, 40) for _ in range(2))
    assert first.trace.spans == again.trace.spans and first.metrics == again.metrics


@pytest.mark.parametrize("forecast", [None, *FORECASTS.values()])
@pytest.mark.parametrize("make", [NgramDrafter, lambda: ModelDrafter("synthetic/tiny", 3, 2, dtype="float32")])
def test_other_drafters_and_end_tokens(target, make, forecast):
    whole = specdec.generate(target, NullDrafter(), [5, 6, 5], 40)
    stop = whole.row()[17]
    channel = Simulated(replace(COSTS, target=Curve.flat("target", 5.0, 40), drafter=Curve.flat("drafter", 1, 99)))
    result = specdec.generate(target, make(), [5, 6, 5], 40, stop=stop, forecast=forecast, channel=channel)
    assert result.row() == whole.row()[:18] and not result.metrics.faults


def test_what_was_not_measured_is_said_at_once(target, drafter):
    with pytest.raises(ValueError, match="drafter was measured at widths 1 to 40 and is needed at 128"):
        run(target, drafter, EarlyExitTopK(Exit(1, 32), branches=None), COSTS)
    for forecast in (None, DraftTopK(1)):
        with pytest.raises(ValueError, match="target was measured at widths 1 to 3 and is needed at 4"):
            run(target, drafter, forecast, replace(COSTS, target=Curve.flat("target", 5.0, 3)))


def test_the_width_of_a_tree_is_part_of_what_must_be_measured(target):
    def tree():
        return ModelDrafter("synthetic/tiny", 3, 3, dtype="float32", device="cpu")

    wide = replace(COSTS, target=Curve.flat("target", 5.0, 40))
    with pytest.raises(ValueError, match="drafter was measured at widths 1 to 40 and is needed at 48"):
        run(target, tree(), DraftTopK(2, branches=16), wide)
    assert not run(target, tree(), DraftTopK(2, branches=13), wide, 12).metrics.faults
    with pytest.raises(ValueError, match="drafter was measured at widths 1 to 2 and is needed at 3"):
        run(target, tree(), AllAccepted(), replace(wide, drafter=Curve.flat("drafter", 1.0, 2)))


@pytest.mark.parametrize("forecast", [None, DraftTopK(1)])
def test_several_rows_have_no_price(target, drafter, forecast):
    with pytest.raises(ValueError, match="decode prompt after prompt"):
        specdec.generate(target, drafter, [[1], [2]], 8, forecast=forecast, channel=Simulated(COSTS))


class Failing(SyntheticDrafter):
    """Fails now and then."""

    def draft(self, context, noise):
        if int(context.lengths[0]) % 3 == 0:
            raise RuntimeError("tired")
        return super().draft(context, noise)


def test_a_fault_is_told_under_the_drafters_own_name(target):
    drafter = Failing("synthetic/tiny", 0.7, 3, dtype="float32", device="cpu")
    result = run(target, drafter, FORECASTS["mirror"], COSTS, 60)
    plain = specdec.generate(target, NullDrafter(), [5], 60)
    assert torch.equal(result.tokens, plain.tokens)
    assert list(result.metrics.faults) == ["Failing: raised RuntimeError: tired"]
