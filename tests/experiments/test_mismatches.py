"""Which replies differ, and what a reader is told about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from experiments.journal import Entry
from experiments.mismatches import Mismatch, describe, explain, find


@dataclass(frozen=True)
class Finding:
    kind: str

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "margin": 0.5}


def entry(arm: str, *tokens: int, turn: int = 0) -> Entry:
    return Entry("a", "qa", turn, arm, 2, list(tokens))


ENTRIES = [
    entry("plain", 1, 2),
    entry("same", 1, 2),
    entry("other", 1, 3),
    entry("free", 7),
    entry("plain", 4, turn=1),
    entry("same", 4, turn=1),
    entry("other", 4, 5, turn=1),
    entry("free", 7, turn=1),
]


def mismatch(kind: str) -> Mismatch:
    return Mismatch("a", 0, "x", {"kind": kind})


def test_finds_what_differs_turn_by_turn() -> None:
    pairs = find(ENTRIES, ["plain", "same", "other"])
    assert [(base.tokens, other.tokens) for base, other in pairs] == [([1, 2], [1, 3]), ([4], [4, 5])]
    assert find(ENTRIES, ["same"]) == []


def test_a_tie_is_no_excuse_for_an_arm_that_rounds_as_plain_does() -> None:
    found = explain(find(ENTRIES, ["other"]), lambda answered: [8], lambda *tokens: Finding("tie-flip"), ["other"])
    assert [mismatch.kind for mismatch in found] == ["bug", "bug"]
    found = explain(find(ENTRIES, ["other"]), lambda answered: [8], None, ["other"])
    assert [mismatch.kind for mismatch in found] == ["bug", "bug"]


def test_asks_triage_about_each() -> None:
    asked: list[tuple[list[int], ...]] = []

    def triage(*tokens: list[int]) -> Finding:
        asked.append(tokens)
        return Finding("drift" if len(asked) == 1 else "bug")

    found = explain(find(ENTRIES, ["other"]), lambda answered: [8, answered.turn], triage)
    assert asked == [([8, 0], [1, 2], [1, 3]), ([8, 1], [4], [4, 5])]
    assert found == [
        Mismatch("a", 0, "other", {"kind": "drift", "margin": 0.5}),
        Mismatch("a", 1, "other", {"kind": "bug", "margin": 0.5}),
    ]


def test_without_triage_they_are_counted_only() -> None:
    found = explain(find(ENTRIES, ["other"]), lambda _: [8], None)
    assert [mismatch.finding for mismatch in found] == [{"kind": "not triaged"}] * 2


def test_a_triage_that_fails_costs_no_results() -> None:
    def triage(*_: list[int]) -> Finding:
        raise RuntimeError("out of memory")

    found = explain(find(ENTRIES, ["other"]), lambda _: [8], triage)
    assert found[0].finding == {"kind": "not triaged", "error": "out of memory"}


@pytest.mark.parametrize(
    ("kinds", "line"),
    [
        ([], "all 84 replies are plain decoding's, token for token"),
        (["tie-flip"], "1 of 84 replies differ from plain decoding's: 1 tie-flip"),
        (
            ["not triaged"],
            "1 of 84 replies differ from plain decoding's: 1 not triaged; dtype=float32 tells rounding from a bug",
        ),
        (["tie-flip"] * 3, "3 of 84 replies differ from plain decoding's: 3 tie-flips"),
        (
            ["drift", "bug", "drift", "bug", "drift"],
            "5 of 84 replies differ from plain decoding's: 3 drift, 2 bugs",
        ),
    ],
)
def test_says_how_many_of_which_kind(kinds: list[str], line: str) -> None:
    assert describe([mismatch(kind) for kind in kinds], 84) == line
