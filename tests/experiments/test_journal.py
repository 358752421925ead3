"""Results outlive whatever ends the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from experiments.journal import Entry, Journal

FIRST = Entry("a", "qa", 0, "plain", 3, [1, 2], "Grüße 🙂\u2028\n", {"seconds": 0.5, "faults": {}})
SECOND = Entry("a", "qa", 1, "ngram", 9, [5], "yes", {})
FAILED = Entry("b", "qa", 0, "plain", error="ValueError: too long")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.jsonl"
    journal = Journal(path)
    for entry in (FIRST, FAILED, SECOND):
        journal.append(entry)
    return path


def test_reads_what_was_written(file: Path) -> None:
    journal = Journal(file)
    assert list(journal) == [FIRST, FAILED, SECOND] and journal["a", 1, "ngram"] == SECOND


def test_one_line_each_for_other_programs(file: Path) -> None:
    lines = file.read_bytes().split(b"\n")
    assert lines.pop() == b"" and [json.loads(line)["text"] for line in lines] == [FIRST.text, "", "yes"]


def test_is_on_the_disk_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "results.jsonl")
    for count, entry in enumerate((FIRST, SECOND), start=1):
        journal.append(entry)
        assert len(journal.path.read_text().splitlines()) >= count
        assert list(Journal(journal.path))[-1] == entry


def test_an_error_is_no_answer(file: Path) -> None:
    journal = Journal(file)
    assert FIRST.key in journal and FAILED.key not in journal and ("c", 0, "plain") not in journal


def test_the_last_entry_counts(file: Path) -> None:
    answer = Entry("b", "qa", 0, "plain", 3, [4], "at last")
    Journal(file).append(answer)
    assert answer.key in Journal(file) and Journal(file)[answer.key] == answer


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_a_half_written_line_is_cut_off(file: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    file.write_bytes(file.read_bytes()[:-cut])
    journal = Journal(file)
    assert list(journal) == [FIRST, FAILED] and not caplog.text  # who only reads leaves it
    journal.append(SECOND)
    assert "half written" in caplog.text
    assert list(Journal(file)) == [FIRST, FAILED, SECOND]


def test_even_if_it_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"id": "a", "cat')
    journal = Journal(path)
    assert list(journal) == [] and path.read_text()
    journal.append(FIRST)
    assert list(Journal(path)) == [FIRST]


@pytest.mark.parametrize("damage", ['{"id": "a"', "[]", '{"id": "a"}', '{"who": 1}'])
def test_another_damaged_line_is_named(file: Path, damage: str) -> None:
    lines = file.read_text("utf-8").split("\n")
    lines[1] = damage
    file.write_text("\n".join(lines), "utf-8")
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2 is no result"):
        Journal(file)


def test_says_nothing_of_a_sound_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Journal(file)
    assert not caplog.records
