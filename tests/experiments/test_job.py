"""The loop: who is asked what, in which order, and what happens when an answer fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from experiments.arms import Decoding, Reply
from experiments.job import Job, failed, finished, run, seed_of
from experiments.journal import Journal
from experiments.prompt import Prompt
from experiments.warm_up import TEXT as WARM_UP
from experiments.warm_up import lengths, sizes, warm_up
from specdec import Metrics, Ratio, Sampling, Trace
from specdec.prompts import encode
from specdec.stage import reading_width

TALK = Prompt("talk", "chat", ("one", "two", "three"))
TEXT = Prompt("text", "code", ("one two", "three"), chat=False)
DECODING = Decoding(64, Sampling(), Ratio())


@dataclass
class FakeArm:
    """Answers with its name, unless a text in the prompt makes it fail."""

    name: str
    verifier: Any
    calls: list[tuple[str, str, Decoding, int]] = field(default_factory=list)
    fails_on: str = "\0"

    def __call__(self, prompt: list[int], decoding: Decoding, seed: int) -> Reply:
        said = self.verifier.tokenizer.decode(prompt)
        if self.fails_on in said:
            raise KeyError(self.fails_on)
        self.calls.append((self.name, said, decoding, seed))
        return Reply([5, 6], self.name.upper(), Metrics.of(Trace()), Trace())

    def repeats_plain(self, decoding: Decoding) -> bool:
        return True


Make = Callable[..., Job]


@pytest.fixture
def make(verifier: Any) -> Make:
    def job(*prompts: Prompt, **fails: str) -> Job:
        calls: list[tuple[str, str, Decoding, int]] = []
        arms = [FakeArm(name, verifier, calls, fails.get(name, "\0")) for name in ("plain", "x", "y")]
        return Job(verifier, tuple(arms), prompts, DECODING, 7)

    return job


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "results.jsonl")


def calls(job: Job) -> list[tuple[str, str, Decoding, int]]:
    return job.arms[0].calls  # type: ignore[attr-defined]


def test_every_arm_hears_plains_replies(make: Make, journal: Journal) -> None:
    job = make(TALK)
    run(job, journal, lambda _: None, {})
    said = [text for _, text, _, _ in calls(job)]
    first = "<|user|>one<|end|><|assistant|>"
    second = f"{first}PLAIN<|end|><|user|>two<|end|><|assistant|>"
    third = f"{second}PLAIN<|end|><|user|>three<|end|><|assistant|>"
    assert said == [first] * 3 + [second] * 3 + [third] * 3


def test_text_is_continued(make: Make, journal: Journal) -> None:
    job = make(TEXT)
    run(job, journal, lambda _: None, {})
    assert [text for _, text, _, _ in calls(job)] == ["one two"] * 3 + ["one twoPLAINthree"] * 3


def test_the_order_rotates_from_prompt_to_prompt(make: Make, journal: Journal) -> None:
    job = make(*(Prompt(f"p{i}", "c", (f"say {i}",)) for i in range(4)))
    run(job, journal, lambda _: None, {})
    names = [name for name, *_ in calls(job)]
    assert names == ["plain", "x", "y", "x", "y", "plain", "y", "plain", "x", "plain", "x", "y"]


def test_a_seed_is_the_replys_not_the_arms(make: Make, journal: Journal) -> None:
    job = make(TALK, TEXT)
    run(job, journal, lambda _: None, {})
    seeds = [seed for *_, seed in calls(job)]
    assert [len(set(seeds[i : i + 3])) for i in range(0, 15, 3)] == [1] * 5 and len(set(seeds)) == 5
    assert seeds[:3] == [seed_of(7, "talk", 0)] * 3 and seed_of(7, "talk", 0) != seed_of(8, "talk", 0)


def test_a_failing_arm_costs_its_prompt_only(
    make: Make, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[int] = []
    job = make(TALK, TEXT, x="two<|end|>")
    run(job, journal, steps.append, {})
    assert failed(job, journal) == {"talk": "x: KeyError: 'two<|end|>'"}
    assert {entry.id for entry in finished(job, journal)} == {"text"}
    assert sum(steps) == 9 + 6 and "talk failed with x" in caplog.text
    # The rest of the prompt is not tried: nothing could be compared with it.
    assert [name for name, said, *_ in calls(job) if "two<" in said] == ["plain"]


def test_a_failed_prompt_is_tried_again(make: Make, journal: Journal) -> None:
    run(make(TALK, x="one<"), journal, lambda _: None, {})
    again = make(TALK)
    run(again, Journal(journal.path), lambda _: None, {})
    assert len(calls(again)) == 8 and failed(again, Journal(journal.path)) == {}
    assert len(list(finished(again, Journal(journal.path)))) == 9


def test_what_is_done_is_not_asked_again(make: Make, journal: Journal) -> None:
    run(make(TALK), journal, lambda _: None, {})
    steps: list[int] = []
    job = make(TALK, TEXT)
    run(job, Journal(journal.path), steps.append, {})
    assert {said for _, said, *_ in calls(job)} == {"one two", "one twoPLAINthree"} and sum(steps) == 15


def test_a_prompt_lacking_one_reply_is_not_finished(make: Make, journal: Journal) -> None:
    job = make(TALK)
    run(job, journal, lambda _: None, {})
    lines = journal.path.read_text().splitlines()
    journal.path.write_text("\n".join(lines[:-1]) + "\n")
    assert len(list(finished(job, journal))) == 9 and list(finished(job, Journal(journal.path))) == []


def test_warm_up_is_short_and_not_recorded(make: Make, journal: Journal) -> None:
    job = make(TALK)
    warm_up(job, 2)
    assert [name for name, *_ in calls(job)] == ["plain", "x", "y"] * 2
    assert {decoding.max_new_tokens for _, _, decoding, _ in calls(job)} == {16}
    assert not journal.path.exists()


def test_every_size_of_prompts_is_met_and_recorded_before_any_is_timed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Prompt("long", "chat", ("one " * 200, "two " * 700, "three " * 900), chat=False)
    job = make(TALK, long, replace(TALK, id="again"))
    short, (first, second, third) = lengths(job, TALK), lengths(job, long)
    network = job.verifier.model.network
    assert max(sizes(job)) + 64 <= network.max_positions, "others can only fail"
    monkeypatch.setattr(type(network), "max_positions", None)
    widths = {reading_width(length) for length in (*short, first, second, third)}
    assert {reading_width(size) for size in sizes(job)} >= widths
    expected = sizes(job)
    assert expected == sorted(expected, reverse=True) and expected[0] == third + 2 * 64
    monkeypatch.setattr(job.verifier, "replay", object(), raising=False)
    warm_up(job, 1)
    ids, decode = encode(WARM_UP, job.verifier.tokenizer)[0][0], job.verifier.tokenizer.decode
    told = [(name, text, decoding.max_new_tokens) for name, text, decoding, _ in calls(job)]
    names = ("plain", "x", "y")
    assert told[:3] == [(name, decode(ids), 16) for name in names]
    assert told[3:] == [(name, decode((ids * size)[:size]), 64) for size in expected for name in names * 2]


def test_an_arm_that_does_not_fit_fails_before_any_prompt(make: Make) -> None:
    with pytest.raises(KeyError):
        warm_up(make(TALK, y="one"), 1)
