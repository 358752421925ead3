"""Every figure against numbers worked out by hand."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from experiments.ahead import Ahead
from experiments.journal import Entry
from experiments.summary import DEFINITIONS, ArmSummary, summarise
from specdec import Metrics, Trace
from specdec.overlap import Hits, Overlap
from specdec.trace import Handover, Round, Span


def metrics(seconds: float, *rounds: tuple[int, int, int], faults: int = 0, **lanes: float) -> dict[str, Any]:
    """Rounds are (drafted, accepted, committed), after a prefill that commits one token."""
    spans = [Span(lane.replace("_", "."), 0, length) for lane, length in lanes.items()]
    entries = [Round(0, drafted, drafted, accepted, committed) for drafted, accepted, committed in rounds]
    trace = Trace(spans=spans, rounds=[Round(0, 0, 0, 0, 1), *entries], start=0, end=seconds)
    trace.faults = Counter({"late": faults} if faults else {})
    return Metrics.of(trace).as_dict()


def entry(name: str, category: str, turn: int, arm: str, what: dict[str, Any], *tokens: int) -> Entry:
    return Entry(name, category, turn, arm, 5, list(tokens or range(what["new_tokens"])), "", what)


def plain(seconds: float, tokens: int) -> dict[str, Any]:
    return metrics(seconds, *[(0, 0, 1)] * (tokens - 1), target=seconds)


ENTRIES = [
    # Prompt a: 4 tokens in 1 s, then 2 in 2 s: 2 tokens/s. Prompt b: 6 tokens in 1 s.
    entry("a", "qa", 0, "plain", plain(1, 4)),
    entry("a", "qa", 1, "plain", plain(2, 2)),
    entry("b", "rag", 0, "plain", plain(1, 6)),
    # Prompt a: 6 tokens in 2 s. Prompt b: 6 tokens in 0.5 s.
    entry("a", "qa", 0, "fast", metrics(1, (3, 2, 3), target=0.5, drafter=0.25, faults=2)),
    entry("a", "qa", 1, "fast", metrics(1, (2, 0, 1), target=0.5, drafter=0.25), 9, 9),
    entry("b", "rag", 0, "fast", metrics(0.5, (3, 3, 4), (1, 1, 1), target=0.25, drafter=0.125, faults=1)),
]
ARMS = {"plain": True, "fast": True, "loose": False, "ahead": True}
LOOSE = [entry(e.id, e.category, e.turn, "loose", e.metrics) for e in ENTRIES if e.arm == "plain"]


def ahead(*hits: bool) -> dict[str, Any]:
    """A verification of 4 ms every 6; the drafter is at work in the last 2 ms of each, and in the ms behind.

    Windows of 2 have 0 and 1 tokens accepted in turns, and each has 5 outcomes prepared.
    """
    count = len(hits) + 2  # prefill before, and behind a window with which the row ends
    spans = [Span("target", 6 * i / 1e3, (6 * i + 4) / 1e3) for i in range(count)]
    spans += [Span("drafter.branch", (6 * i + 2) / 1e3, (6 * i + 5) / 1e3, i) for i in range(count)]
    rounds = [Round(0, 2, 2, i % 2, i % 2 + 1) for i in range(len(hits))]
    trace = Trace(spans=spans, rounds=[Round(0, 0, 0, 0, 1), *rounds, Round(0, 2, 2, 0, 1)], end=count * 6 / 1e3)
    trace.handovers = [Handover((True,), 99), *(Handover((hit,), 5) for hit in hits)]
    return Metrics.of(trace).as_dict()


AHEAD = [
    entry("a", "qa", 0, "ahead", ahead(True, True, False)),
    entry("a", "qa", 1, "ahead", ahead(True)),
    entry("b", "rag", 0, "ahead", {**ahead(), "overlap": None}),  # as where prefill was all
]
ALL = [*ENTRIES, *LOOSE, *AHEAD]


@pytest.fixture
def arms() -> dict[str, ArmSummary]:
    return {summary.arm: summary for summary in summarise(ALL, ARMS)}


def test_speed(arms: dict[str, ArmSummary]) -> None:
    base, fast = arms["plain"], arms["fast"]
    assert (base.tokens_per_second, fast.tokens_per_second) == (4, 7.5)
    assert (base.tokens_per_second_pooled, fast.tokens_per_second_pooled) == (12 / 4, 12 / 2.5)
    assert (base.speedup, base.speedup_pooled, base.speedup_mean_of_ratios) == (1, 1, 1)
    assert fast.speedup == 7.5 / 4
    assert fast.speedup_pooled == pytest.approx(1.6)
    assert fast.speedup_mean_of_ratios == (1.5 + 2) / 2
    assert fast.speedup_interval == pytest.approx((1.5, 2))
    assert (fast.prompts, fast.replies, fast.new_tokens, fast.seconds) == (2, 3, 12, 2.5)


def test_categories(arms: dict[str, ArmSummary]) -> None:
    parts = arms["fast"].categories
    assert {name: (part.prompts, part.tokens_per_second, part.speedup) for name, part in parts.items()} == {
        "qa": (1, 3, 1.5),
        "rag": (1, 12, 2),
    }
    # Decoding rounds commit 3 and 1 tokens for the one, 4 and 1 for the other.
    assert [part.tokens_per_round for part in parts.values()] == [2, 2.5]


def test_accepted_length_by_every_definition(arms: dict[str, ArmSummary]) -> None:
    """Decoding rounds of `fast` commit 3, 1, 4 and 1 tokens, with 2, 0, 3 and 1 drafts accepted."""
    accepted = arms["fast"].accepted
    assert accepted.tokens_per_round == 9 / 4
    assert accepted.tokens_per_round_with_prefill == 12 / 7
    assert accepted.drafts_per_round == 6 / 4
    assert accepted.mean_over_replies == pytest.approx((3 + 1 + 2.5) / 3)
    base = arms["plain"].accepted
    assert (base.tokens_per_round, base.tokens_per_round_with_prefill, base.drafts_per_round) == (1, 1, 0)


def test_positions_are_conditional_and_pooled(arms: dict[str, ArmSummary]) -> None:
    table = [(d.depth, d.drafted, d.tested, d.accepted, d.share) for d in arms["fast"].positions]
    assert table == [(1, 4, 4, 3, 0.75), (2, 3, 2, 2, 1.0), (3, 2, 2, 1, 0.5)]
    assert arms["plain"].positions == ()


def test_a_depth_that_was_never_tested_has_no_share() -> None:
    entries = [entry("a", "qa", 0, arm, metrics(1, (2, 0, 1))) for arm in ("plain", "fast")]
    assert [depth.share for depth in summarise(entries, {"plain": True, "fast": True})[1].positions] == [
        0,
        None,
    ]


def test_shares_of_time(arms: dict[str, ArmSummary]) -> None:
    assert arms["fast"].shares == {"target": 0.5, "drafter": 0.25, "host": 0.25}
    assert arms["plain"].shares == {"target": 1, "drafter": 0, "host": 0}


def test_of_a_draft_model_only_its_forwards_count() -> None:
    what = metrics(10, (1, 1, 2), target=5, drafter=4, drafter_model=3)
    entries = [entry("a", "qa", 0, "plain", plain(1, 3)), entry("a", "qa", 0, "fast", what)]
    shares = summarise(entries, {"plain": True, "fast": True})[1].shares
    assert shares == pytest.approx({"target": 0.5, "drafter": 0.3, "host": 0.2})


def test_drafting_ahead_is_pooled_over_replies(arms: dict[str, ArmSummary]) -> None:
    """Decoding rounds: 4 and 2, in which the drafter works 3 ms each, 1 of them while the target does not."""
    found = arms["ahead"].ahead
    assert found is not None and all(arms[name].ahead is None for name in ("plain", "fast", "loose"))
    assert found.hits == {0: Hits(3, 2), 1: Hits(1, 1)}
    assert found.rates() == [2 / 3, 1]
    assert (found.hit_rate, found.fallback) == (3 / 4, 1 / 4)
    assert (found.branches, found.wasted) == (5, 5 - 3 / 4)
    assert found.exposed_ms == pytest.approx(1) and found.target_idle_ms == pytest.approx(2)
    assert found.rendezvous_ms == pytest.approx(1) and found.drafter_idle_ms == pytest.approx(3)
    assert found.hidden == pytest.approx(2 / 3)


def test_a_length_that_did_not_occur_has_no_rate() -> None:
    found = Ahead.measured(Overlap(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {2: Hits(4, 1)}, {}))
    assert found.rates() == [None, None, 0.25]
    assert (found.exposed_ms, found.branches, found.hidden) == (None, None, None)


def test_identical(arms: dict[str, ArmSummary]) -> None:
    assert {name: arm.identical for name, arm in arms.items()} == {
        "plain": (3, 3),
        "fast": (2, 3),
        "loose": None,
        "ahead": (0, 3),
    }


def test_faults_add_up(arms: dict[str, ArmSummary]) -> None:
    assert arms["fast"].faults == {"late": 3} and arms["plain"].faults == {}


def test_replies_of_one_token_have_no_decoding_round() -> None:
    entries = [entry("a", "qa", 0, "plain", plain(1, 1))]
    (base,) = summarise(entries, {"plain": True})
    accepted = base.accepted
    assert (accepted.tokens_per_round, accepted.drafts_per_round, accepted.mean_over_replies) == (
        None,
        None,
        None,
    )
    assert accepted.tokens_per_round_with_prefill == 1 and base.speedup_interval is None


def test_survives_the_way_through_a_file(arms: dict[str, ArmSummary]) -> None:
    stored = [Entry(**json.loads(json.dumps(vars(e)))) for e in ALL]
    assert {summary.arm: summary for summary in summarise(stored, ARMS)} == arms


def test_every_figure_that_is_no_count_is_defined(arms: dict[str, ArmSummary]) -> None:
    counts = {"arm", "prompts", "replies", "new_tokens", "seconds", "drafted_tokens", "categories", "faults"}
    names = arms["fast"].as_dict()
    assert names.pop("ahead") is None and arms["ahead"].ahead is not None
    names |= {f"accepted.{name}": value for name, value in names.pop("accepted").items()}
    names |= {f"ahead.{name}": value for name, value in arms["ahead"].as_dict()["ahead"].items()}
    assert names.keys() - counts == DEFINITIONS.keys()
