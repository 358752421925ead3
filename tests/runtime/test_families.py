"""Greedy decoding gives Hugging Face's own tokens, on every architecture family and with every drafter."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from families import FAMILIES, perturbed, plain_greedy, random_prompt

import specdec
from drafters import (
    EarlyExitDrafter,
    LookaheadDrafter,
    ModelDrafter,
    NgramDrafter,
    NullDrafter,
    RecyclingDrafter,
    SuffixDrafter,
)
from specdec import Context, Draft, Noise, Result, Tap
from specdec.metrics import Position
from specdec.protocols import Drafter, Verifier
from specdec.sequences import Sequences
from verifiers import FullVerifier

LONG = 40
ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
DRAFTERS = [
    "none",
    "ngram",
    "suffix",
    "exit chain",
    "exit tree",
    "model chain",
    "model tree",
    "static tree",
    "recycling",
    "lookahead",
]
DRAFTING = DRAFTERS[1:]
# What the others ask of a target these ask too: they see the two scenarios that have most in them.
WHOLE = {"none", "exit tree", "model chain", "model tree"}
# name: rows, most new tokens, whether there are end tokens
SCENARIOS = {
    "one row": (ROWS[:1], LONG, False),
    "ragged rows": (ROWS, LONG, False),
    "end tokens": (ROWS, LONG, True),
    "1 new token": (ROWS, 1, False),
    "2 new tokens": (ROWS, 2, False),
    "7 new tokens": (ROWS, 7, False),
}


class Family:
    """A model of one family, what it says by itself, and the drafters that work for it."""

    def __init__(self, name: str) -> None:
        self.module = FAMILIES[name]()
        self.verifier = FullVerifier(self.module)
        self.rows = [plain_greedy(self.module, row, LONG) for row in ROWS]
        self.ends = mid_row_tokens(self.rows)
        self.ended_rows = [plain_greedy(self.module, row, LONG, self.ends) for row in ROWS]
        draft = perturbed(self.module, 0.1)
        self.drafters: dict[str, Drafter] = {
            "none": NullDrafter(),
            "ngram": NgramDrafter(length=5),
            "suffix": SuffixDrafter(length=6, min_match=1),
            "exit chain": EarlyExitDrafter(length=3),
            "exit tree": EarlyExitDrafter(length=3, width=2, nodes=6),
            "model chain": ModelDrafter(draft, length=4),
            "model tree": ModelDrafter(draft, length=3, width=3, nodes=8),
            "static tree": ModelDrafter(draft, tree=[[0], [1], [2], [0, 0], [1, 0], [0, 0, 0], [0, 0, 1]]),
            "recycling": RecyclingDrafter(nodes=12, top=3, levels=3),
            "lookahead": LookaheadDrafter(window=3, ngram=3, guesses=2),
        }

    def expected(self, count: int, ended: bool) -> list[list[int]]:
        """New tokens of every row by Hugging Face: greedy rows of a lower limit are their beginnings."""
        return self.ended_rows if ended else [row[:count] for row in self.rows]


def mid_row_tokens(rows: list[list[int]]) -> list[int]:
    """Two tokens that end the rows at different times, all of them well inside."""
    for first in rows[0][8:30]:
        for second in rows[1][8:30]:
            lengths = [length_to(row, {first, second}) for row in rows]
            if len(set(lengths)) == len(rows) and min(lengths) > 5 and sorted(lengths)[1] < LONG:
                return [first, second]
    raise AssertionError("no two tokens end the rows at different times")


def length_to(row: list[int], ends: set[int]) -> int:
    return next((index for index, token in enumerate(row) if token in ends), LONG) + 1


@cache
def family(name: str) -> Family:
    return Family(name)


@cache
def outcome(name: str, drafter: str, scenario: str) -> Result:
    rows, count, ended = SCENARIOS[scenario]
    model = family(name)
    stop = model.ends if ended else None
    return specdec.generate(model.verifier, model.drafters[drafter], rows, max_new_tokens=count, stop=stop)


@pytest.mark.parametrize(
    ("drafter", "scenario"),
    [
        (drafter, scenario)
        for drafter in DRAFTERS
        for scenario in (SCENARIOS if drafter in WHOLE else ("ragged rows", "end tokens"))
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_speculative_tokens_are_the_plain_ones(name: str, drafter: str, scenario: str) -> None:
    rows, count, ended = SCENARIOS[scenario]
    result = outcome(name, drafter, scenario)
    assert result.metrics.faults == {}  # else a broken drafter hides behind the guard
    assert [result.row(b) for b in range(len(rows))] == family(name).expected(count, ended)[: len(rows)]


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_end_at_different_times(name: str) -> None:
    lengths = [len(row) for row in family(name).expected(LONG, ended=True)]
    assert len(set(lengths)) == len(ROWS)
    assert sum(length < LONG for length in lengths) >= 2


@pytest.mark.parametrize("drafter", DRAFTING)
@pytest.mark.parametrize("name", FAMILIES)
def test_some_drafts_are_accepted_and_some_rejected(name: str, drafter: str) -> None:
    first = positions(name, drafter)[0]
    assert 0 < first.accepted < first.tested


def test_deeper_drafts_are_accepted_and_rejected_too() -> None:
    for drafter in DRAFTING:
        third = [positions(name, drafter)[2] for name in FAMILIES if len(positions(name, drafter)) > 2]
        assert 0 < sum(place.accepted for place in third) < sum(place.tested for place in third), drafter


@pytest.mark.parametrize("name", FAMILIES)
def test_trees_are_not_chains(name: str) -> None:
    tree, chain = (outcome(name, drafter, "ragged rows").metrics for drafter in ("exit tree", "exit chain"))
    assert tree.drafted_tokens / tree.rounds > 1.5 * chain.drafted_tokens / chain.rounds


def positions(name: str, drafter: str) -> tuple[Position, ...]:
    return outcome(name, drafter, "ragged rows").metrics.positions


@dataclass
class Oracle:
    """Proposes what the target is going to say; to some rows, what it is not going to say.

    Whole windows are accepted, so that whatever cuts a window has accepted tokens behind it.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    length: int = 5
    wrong: set[int] = field(default_factory=set)
    wants: tuple[Tap, ...] = ()

    def begin(self, target: Verifier, seq: Sequences) -> None:
        self.vocabulary = target.vocab_size

    def draft(self, context: Context, noise: Noise) -> Draft:
        tokens_BN = torch.tensor([self.window(b, length) for b, length in enumerate(context.lengths.tolist())])
        return Draft.chain(tokens_BN, context.lengths, torch.full_like(context.lengths, self.length))

    def window(self, index: int, length: int) -> list[int]:
        start = length - len(self.prompts[index])
        tokens = [*self.answers[index], *[0] * self.length][start : start + self.length]
        return [(token + 1) % self.vocabulary for token in tokens] if index in self.wrong else tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_follows_an_end_token_inside_an_accepted_window(name: str) -> None:
    model = family(name)
    result = specdec.generate(model.verifier, Oracle(ROWS, model.rows), ROWS, max_new_tokens=LONG, stop=model.ends)
    assert result.metrics.faults == {}
    assert [result.row(b) for b in range(len(ROWS))] == model.expected(LONG, ended=True)
    assert (result.tokens[torch.arange(result.tokens.shape[1]) >= result.lengths[:, None]] == 0).all()
    cut = [entry.row for entry in result.trace.rounds if entry.accepted == entry.committed > 0]
    assert cut, "no end token was a draft token"


@pytest.mark.parametrize("count", [1, 2, 7, LONG])
def test_a_limit_cuts_an_accepted_window(count: int) -> None:
    model = family("llama")
    result = specdec.generate(model.verifier, Oracle(ROWS, model.rows), ROWS, max_new_tokens=count)
    assert [result.row(b) for b in range(len(ROWS))] == model.expected(count, ended=False)


def test_end_tokens_of_the_model_itself_are_heeded() -> None:
    model = family("qwen2")
    verifier = FullVerifier(model.module)
    verifier.end_tokens = tuple(model.ends)
    result = specdec.generate(verifier, model.drafters["model chain"], ROWS, max_new_tokens=LONG)
    assert [result.row(b) for b in range(len(ROWS))] == model.expected(LONG, ended=True)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("drafter", ["oracle", "model chain", "model tree", "static tree"])
def test_a_row_may_fill_every_position_of_the_model_before_the_others_end(name: str, drafter: str) -> None:
    prompts, count = [random_prompt(20, seed=4), random_prompt(3, seed=5)], 12
    module = FAMILIES[name](max_position_embeddings=32)
    answers = [plain_greedy(module, prompt, count) for prompt in prompts]
    quick = Oracle(prompts, answers, wrong={1})
    draft = perturbed(module, 0.1)
    slow: dict[str, Drafter] = {
        "oracle": quick,
        "model chain": ModelDrafter(draft, length=4),
        "model tree": ModelDrafter(draft, length=3, width=2),
        "static tree": ModelDrafter(draft, tree=[[0], [1], [0, 0], [1, 0], [0, 0, 0]]),
    }
    result = specdec.generate(FullVerifier(module), Relay(quick, slow[drafter]), prompts, max_new_tokens=count)
    assert result.metrics.faults == {}
    assert [result.row(b) for b in range(2)] == answers


@dataclass
class Relay:
    """One drafter until the first row is full, then another."""

    first: Drafter
    second: Drafter
    wants: tuple[Tap, ...] = ()

    def begin(self, target: Verifier, seq: Sequences) -> None:
        self.first.begin(target, seq)
        self.second.begin(target, seq)

    def draft(self, context: Context, noise: Noise) -> Draft:
        return (self.first if int(context.room[0]) > 0 else self.second).draft(context, noise)
