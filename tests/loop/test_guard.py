"""A drafter that fails costs speed, never tokens."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

import specdec
from drafters import ModelDrafter, NullDrafter
from specdec import Coupled, Draft, Sampling
from verifiers import FullVerifier

PROMPT, NEW = [1, 2, 3], 24
WARM = Sampling(temperature=1.0)


class Faulty:
    """A good drafter whose every second draft is spoiled."""

    wants = ()

    def __init__(self, model, spoil) -> None:
        self.inner, self.spoil, self.calls = ModelDrafter(model, length=3), spoil, 0

    def begin(self, target, seq) -> None:
        self.inner.begin(target, seq)

    def draft(self, context, noise):
        self.calls += 1
        draft = self.inner.draft(context, noise)
        return self.spoil(draft) if self.calls % 2 and draft.size else draft


def raises(draft):
    raise RuntimeError("the drafter died")


def law_with(value):
    def spoil(draft):
        laws = draft.laws.clone() if draft.laws is not None else torch.zeros(*draft.tokens.shape, 97)
        laws[:, 1, 5] = value
        return replace(draft, laws=laws)

    return spoil


SPOILS = {
    "raises": raises,
    "returns nothing": lambda draft: None,
    "token too large": lambda draft: replace(draft, tokens=draft.tokens + 1000),
    "negative token": lambda draft: replace(draft, tokens=draft.tokens - 1000),
    "parent after child": lambda draft: replace(draft, parents=draft.parents + 2),
    "own parent": lambda draft: replace(draft, parents=draft.parents + 1),
    "parent below padding": lambda draft: replace(draft, parents=draft.parents - 7),
    "child of padding": lambda draft: replace(draft, parents=torch.where(draft.parents == -1, -2, draft.parents)),
    "stale": lambda draft: replace(draft, base=draft.base - 1),
    "more children than it says": lambda draft: replace(
        draft, parents=torch.full_like(draft.parents, -1), fanout=2
    ),
    "no children at all": lambda draft: replace(draft, fanout=0),
    "small integers": lambda draft: replace(draft, tokens=draft.tokens.int()),
    "another device": lambda draft: replace(draft, parents=draft.parents.to("meta")),
    "laws of integers": lambda draft: replace(draft, laws=torch.ones(*draft.tokens.shape, 97, dtype=torch.int64)),
    "another batch": lambda draft: replace(draft, tokens=draft.tokens.repeat(2, 1)),
    "laws of another width": lambda draft: replace(draft, laws=torch.ones(*draft.tokens.shape, 5) / 5),
    "NaN law": law_with(torch.nan),
    "infinite law": law_with(torch.inf),
    "negative law": law_with(-0.5),
    "unnormalised law": law_with(0.5),
    "no chance for its own token": lambda draft: replace(
        draft, laws=torch.zeros(*draft.tokens.shape, 97).scatter(-1, (draft.tokens[..., None] + 1) % 97, 1)
    ),
}


@pytest.fixture(scope="module")
def verifier(tiny_llama):
    return FullVerifier(tiny_llama)


@pytest.mark.parametrize("fault", SPOILS)
@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_no_token_is_lost(verifier, tiny_llama, fault, sampling):
    # Under the coupled rule the tokens are those of plain sampling whatever was drafted.
    options = {"max_new_tokens": NEW, "sampling": sampling, "acceptance": Coupled(), "seed": 3}
    plain = specdec.generate(verifier, NullDrafter(), PROMPT, **options)
    result = specdec.generate(verifier, Faulty(tiny_llama, SPOILS[fault]), PROMPT, **options)
    assert result.row() == plain.row()
    assert sum(result.metrics.faults.values()) > 0
    assert all(message.startswith("Faulty: ") for message in result.metrics.faults)


def test_an_empty_draft_counts_from_where_the_rows_are(verifier):
    # Made for another length: the numbers of the positions it names are not those of the rows.
    options = {"max_new_tokens": NEW, "sampling": WARM, "seed": 3}
    plain = specdec.generate(verifier, NullDrafter(), PROMPT, **options)

    class Stale(NullDrafter):
        def draft(self, context, noise):
            return Draft.empty(context.lengths - 2)

    assert specdec.generate(verifier, Stale(), PROMPT, **options).row() == plain.row()


@pytest.mark.parametrize("fault", [name for name in SPOILS if name.endswith(" law") or "chance" in name])
def test_a_poisoned_law_is_withdrawn_and_its_token_stays(verifier, tiny_llama, fault):
    result = specdec.generate(
        verifier, Faulty(tiny_llama, SPOILS[fault]), PROMPT, max_new_tokens=NEW, sampling=WARM
    )
    assert result.metrics.faults
    assert all(entry.drafted > 0 for entry in result.trace.rounds[1:-1])


def test_a_good_row_survives_a_bad_one(verifier, tiny_llama):
    def spoil_second(draft):
        wrong = torch.tensor([[0], [1000]])
        return replace(draft, tokens=draft.tokens + wrong)

    drafter = Faulty(tiny_llama, spoil_second)
    rows = [PROMPT, [4, 5]]
    result = specdec.generate(verifier, drafter, rows, max_new_tokens=NEW)
    plain = specdec.generate(verifier, NullDrafter(), rows, max_new_tokens=NEW)
    assert torch.equal(result.tokens, plain.tokens)
    drafted = {row: [e.drafted for e in result.trace.rounds if e.row == row][1:] for row in (0, 1)}
    assert min(drafted[0][:-1]) > 0
    assert 0 in drafted[1]


def test_a_fault_is_logged_once_and_counted(verifier, tiny_llama, caplog):
    with caplog.at_level(logging.WARNING):
        result = specdec.generate(verifier, Faulty(tiny_llama, raises), PROMPT, max_new_tokens=NEW)
    (message,) = result.metrics.faults
    assert "the drafter died" in message
    assert result.metrics.faults[message] > 1
    assert len([record for record in caplog.records if "the drafter died" in record.message]) == 1


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_errors_when_decoding_begins_reach_the_caller(verifier, kind):
    class Misfit(NullDrafter):
        def begin(self, target, seq):
            raise kind("another vocabulary")

    with pytest.raises(kind, match="another vocabulary"):
        specdec.generate(verifier, Misfit(), PROMPT)


def test_ctrl_c_is_not_swallowed(verifier):
    class Interrupted(NullDrafter):
        def draft(self, context, noise):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        specdec.generate(verifier, Interrupted(), PROMPT)


def test_drafts_deeper_than_the_row_are_cut(verifier, tiny_llama):
    class Endless(NullDrafter):
        def draft(self, context, noise):
            tokens = torch.zeros(1, 500, dtype=torch.int64)
            return Draft.chain(tokens, context.lengths, torch.tensor([500]))

    result = specdec.generate(verifier, Endless(), PROMPT, max_new_tokens=6)
    assert not result.metrics.faults
    assert [entry.nodes for entry in result.trace.rounds] == [0, *range(4, -1, -1)][: len(result.trace.rounds)]
