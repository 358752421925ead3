"""Whether two runs gave the same tokens, and where not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.compare import Comparison, compare, main
from experiments.journal import Entry, Journal

ENTRIES = [
    Entry("a", "qa", 0, "plain", 3, [1, 2, 3]),
    Entry("a", "qa", 1, "plain", 9, [4, 5]),
    Entry("a", "qa", 0, "ngram", 3, [1, 2, 3]),
    Entry("b", "qa", 0, "plain", error="ValueError: too long"),
]


def folder(path: Path, entries: list[Entry]) -> Path:
    path.mkdir()
    journal = Journal(path / "results.jsonl")
    for entry in entries:
        journal.append(entry)
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return folder(tmp_path / "first", ENTRIES)


@pytest.mark.parametrize(("tokens", "position"), [([4, 6], 1), ([4], 1), ([4, 5, 5], 2), ([], 0)])
def test_says_where_a_reply_differs(first: Path, tmp_path: Path, tokens: list[int], position: int) -> None:
    changed = [ENTRIES[0], replace(ENTRIES[1], tokens=tokens), *ENTRIES[2:]]
    found = compare(first, folder(tmp_path / "second", changed))
    differs = (f"a, turn 1, new token {position}",)
    assert found == [Comparison("plain", 2, differs), Comparison("ngram", 1, ())]
    assert str(found[0]).splitlines() == ["plain: 1 of 2 replies have the same tokens", "  " + differs[0]]


def status(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, folders)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_exit_status(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder(tmp_path / "second", [replace(ENTRIES[0], tokens=[7]), *ENTRIES[1:]])
    less = folder(tmp_path / "third", ENTRIES[:2])
    assert status(monkeypatch, first, first) == 0
    assert status(monkeypatch, first, other) == 1
    assert status(monkeypatch, first, less) == status(monkeypatch, less, first) == 1


def test_says_what_one_run_alone_has_answered(first: Path, tmp_path: Path) -> None:
    less = folder(tmp_path / "second", ENTRIES[:1])
    plain, ngram = compare(less, first)
    assert (plain.replies, plain.differ, plain.missing) == (1, (), (f"a, turn 1, is in {first} alone",))
    assert (ngram.replies, ngram.missing) == (0, (f"a, turn 0, is in {first} alone",))


def test_reading_leaves_a_run_that_is_being_written_alone(first: Path) -> None:
    path = first / "results.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "c", "cat')
    written = path.read_bytes()
    assert all(comparison.same for comparison in compare(first, first))
    assert path.read_bytes() == written


def test_what_cannot_be_compared_is_refused(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(monkeypatch, first, tmp_path / "nowhere") == 2
    assert "has no results.jsonl" in capsys.readouterr().err
    assert status(monkeypatch, first, folder(tmp_path / "second", [replace(ENTRIES[0], id="c")])) == 2
    assert "no arm answered the same prompt" in capsys.readouterr().err
