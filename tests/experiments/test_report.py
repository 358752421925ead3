"""What a reader is told: marks for what is slow, lossy or wrong, and a table that fits the terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from experiments.ahead import Ahead
from experiments.arms import Decoding
from experiments.mismatches import Mismatch
from experiments.report import Report, law, rule, statement
from experiments.summary import Accepted, ArmSummary, Depth, Part
from specdec import Coupled, Ratio, Sampling, Typical
from specdec.overlap import Hits

SHARES = {"target": 0.914, "drafter": 0.05, "host": 0.036}
PLAIN = ArmSummary(
    arm="plain",
    prompts=21,
    replies=23,
    new_tokens=1472,
    seconds=40.0,
    tokens_per_second=36.81,
    tokens_per_second_pooled=36.8,
    speedup=1.0,
    speedup_interval=(1.0, 1.0),
    speedup_pooled=1.0,
    speedup_mean_of_ratios=1.0,
    accepted=Accepted(1.0, 1.0, 0.0, 1.0),
    drafted_tokens=0,
    positions=(),
    shares=SHARES,
    identical=(23, 23),
    categories={"mt_bench": Part(3, 36.0, 1.0, 1.0), "math_reasoning": Part(3, 37.0, 1.0, None)},
    faults={},
)
AHEAD = Ahead(0.75, {0: Hits(3, 2), 2: Hits(1, 1)}, {0: 0.7, 1: 0.425}, 0.4, 1.0, 2.25, 3.5, 1.25, 5.0, 4.25, 0.25)
POSITIONS = tuple(Depth(i, 40, 40, 20, share) for i, share in enumerate((1.0, 0.5, 0.333, None, 0.9), start=1))
GREEDY = Decoding(64, Sampling(), Ratio())


def arm(name: str, speedup: float, low: float, high: float, **changes: Any) -> ArmSummary:
    known = (2.345, None)
    parts = {name: Part(3, 30.0, speedup, own) for name, own in zip(PLAIN.categories, known, strict=True)}
    return replace(
        PLAIN,
        arm=name,
        speedup=speedup,
        speedup_interval=(low, high),
        categories=parts,
        positions=POSITIONS,
        **changes,
    )


def shown(*summaries: ArmSummary, width: int = 120, colour: bool = False, **options: Any) -> str:
    settings = {"title": "title", "decoding": GREEDY, "prompts": (21, 21), **options}
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=colour, color_system="standard" if colour else None)
    Report(summaries=(PLAIN, *summaries), **settings).show(console)
    return screen.getvalue()


def row(text: str, name: str) -> str:
    lines = text.splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith(name))
    return lines[index] + lines[index + 1]


class TestTable:
    def test_figures_of_an_arm(self) -> None:
        cells = row(shown(arm("ngram", 1.423, 1.31, 1.55)), "ngram").split()
        assert cells[:9] == ["ngram", "36.8", "1.42×", "(1.31–1.55)", "1.00", "100", "50", "33", "–"]
        assert cells[9:] == ["23", "of", "23", "91/5/4"]

    @pytest.mark.parametrize(
        ("low", "speedup", "high", "mark"),
        [
            (0.7, 0.8, 0.95, "slower than plain"),
            (0.7, 0.8, 1.1, "no clear gain"),
            (0.9, 1.2, 1.5, "no clear gain"),
            (1.01, 1.2, 1.5, ""),
        ],
    )
    def test_an_arm_that_does_not_help_is_marked(self, low: float, speedup: float, high: float, mark: str) -> None:
        text = row(shown(arm("x", speedup, low, high)), "x")
        for words in ("slower than plain", "no clear gain"):
            assert (words in text) == (words == mark)

    def test_without_an_interval(self) -> None:
        one = replace(arm("x", 0.8, 0, 0), speedup_interval=None)
        text = row(shown(one), "x")
        assert "0.80× " in text and "(" not in text and "slower than plain" in text

    def test_plain_is_what_is_compared_with(self) -> None:
        line = row(shown(), "plain")
        assert "1.00×" in line and "of" not in line and "faster" not in line

    def test_tokens_that_are_not_promised(self) -> None:
        sampled = Decoding(64, Sampling(temperature=1), Ratio())
        text = shown(arm("x", 2, 1.5, 3, identical=None), decoding=sampled)
        assert "n/a" in row(text, "x") and "need not be plain's" in text
        assert "need not be plain's" not in shown(arm("x", 2, 1.5, 3))

    def test_fits_eighty_columns(self) -> None:
        long = arm("hf_generate", 0.87, 0.81, 0.93, identical=(17, 23))
        whole = replace(arm("ngram", 1.4, 1.3, 1.5), positions=(Depth(1, 40, 40, 40, 1.0),) * 4)
        text = shown(long, whole, width=80)
        assert "…" not in text and max(map(len, text.splitlines())) <= 80
        for cell in ("hf_generate", "0.87× (0.81–0.93)", "100 100 100 100", "17 of 23", "91/5/4"):
            assert cell in text

    def test_a_long_name_is_folded(self) -> None:
        text = shown(arm("early_exit_with_a_long_name", 0.87, 0.81, 0.93), width=80)
        assert max(map(len, text.splitlines())) <= 80
        assert "0.87× (0.81–0.93)" in text and "100 50 33 –" in text and "91/5/4" in text

    def test_categories(self) -> None:
        text = shown(arm("x", 2, 1.5, 3), arm("y", 0.5, 0.4, 0.6))
        lines = {line.split()[0]: line.split()[2:] for line in text.splitlines() if "(3)" in line}
        assert lines["mt_bench"] == ["2.00×", "2.35", "0.50×", "2.35"]
        assert lines["math_reasoning"] == ["2.00×", "0.50×"]

    def test_drafting_ahead(self) -> None:
        mirror = arm("mirror", 2, 1.5, 3, ahead=AHEAD)
        text = shown(mirror, arm("x", 2, 1.5, 3), replace(mirror, arm="ssd", ahead=replace(AHEAD, hidden=None)))
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("drafting ahead"))
        assert lines[start].split() == ["drafting", "ahead", "mirror", "ssd"]
        rows = [line.split("  ") for line in lines[start + 2 : start + 13]]
        assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
            ["hit rate, %", "75", "75"],
            ["at accepted length 0, 1, …", "67 – 100", "67 – 100"],
            ["named early at position 0, 1, …, %", "70 42", "70 42"],
            ["hidden share, %", "40", "–"],
            ["exposed, ms/round", "1.00", "1.00"],
            ["target idle, ms/round", "2.25", "2.25"],
            ["drafter idle, ms/round", "3.50", "3.50"],
            ["rendezvous, ms/round", "1.25", "1.25"],
            ["branches prepared/round", "5.00", "5.00"],
            ["branches wasted/round", "4.25", "4.25"],
            ["fallback, % of rounds", "25", "25"],
        ]
        assert "neither is" in text

    def test_in_turns_nothing_is_said_of_drafting_ahead(self) -> None:
        assert "ahead" not in shown(arm("x", 2, 1.5, 3))

    def test_a_lossy_rule_is_in_the_title(self) -> None:
        lossy = Decoding(64, Sampling(temperature=1), Typical())
        title = statement("t", "bfloat16", "cpu", lossy)
        text = shown(title=title, decoding=lossy, colour=True)
        assert "LOSSY" in text and "\x1b[1;31m" in text.splitlines()[0]
        assert "\x1b[1;31m" not in shown(colour=True)


class TestLines:
    def test_mismatches(self) -> None:
        flip = Mismatch("a", 0, "x", {"kind": "tie-flip"})
        report = Report("t", GREEDY, (PLAIN, arm("x", 2, 1, 3), arm("y", 2, 1, 3)), (21, 21), [flip])
        assert [line.plain for line in report.lines()] == [
            "1 of 46 replies differ from plain decoding's: 1 tie-flip"
        ]
        assert report.status == 0

    def test_a_bug_is_red_and_an_exit_status(self) -> None:
        bug = Mismatch("a", 0, "x", {"kind": "bug"})
        report = Report("t", GREEDY, (PLAIN, arm("x", 2, 1, 3)), (21, 21), [bug])
        assert report.status == 1
        text = shown(arm("x", 2, 1, 3), mismatches=[bug], colour=True)
        assert "\x1b[1;31m1 of 23 replies differ" in text

    def test_what_is_missing(self) -> None:
        text = shown(prompts=(20, 23), failed={"q7": "plain: ValueError: [too] long"})
        assert "20 of 23 prompts finished" in text and "failed: q7: plain: ValueError: [too] long" in text

    def test_a_drafter_at_fault(self) -> None:
        text = shown(arm("x", 2, 1, 3, faults={"X: raised KeyError": 4}))
        assert "x was at fault 4 times: X: raised KeyError" in text

    def test_nothing_finished(self) -> None:
        report = Report("t", GREEDY, (), (0, 3))
        assert report.status == 1 and [line.plain for line in report.lines()] == ["0 of 3 prompts finished"]


class TestStatement:
    def test_says_what_runs_where_and_what_is_promised(self) -> None:
        line = statement("smol", "bfloat16", "a CPU", Decoding(64, Sampling(temperature=0.7, top_k=5), Coupled()))
        assert line == "smol · bfloat16 · a CPU · temperature 0.7, top-k 5 · acceptance coupled (lossless)"

    def test_laws(self) -> None:
        assert law(GREEDY) == "greedy"
        sampling = Sampling(temperature=1, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
        told = "temperature 1, top-p 0.9, min-p 0.1, repetition penalty 1.2"
        assert law(replace(GREEDY, sampling=sampling)) == told

    def test_rules(self) -> None:
        assert rule(GREEDY) == "acceptance ratio (lossless)"
        assert "LOSSY" in rule(replace(GREEDY, acceptance=Typical()))
