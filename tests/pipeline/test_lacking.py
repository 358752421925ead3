"""Rows of which the drafter lacks tokens: nothing is drafted from what has holes, and they are told anew."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import specdec
from drafters import ModelDrafter, NullDrafter
from specdec.channel import Inline
from specdec.channel.inline import InlineLink
from specdec.channel.sides import worker_for
from specdec.decode import opening
from specdec.forecast import AllAccepted, DraftTopK
from specdec.messages import Opening, Outcome
from specdec.sequences import Sequences
from verifiers import FullVerifier

ROUND = 3  # in which the connection breaks


class Reconnected(InlineLink):
    """The connection breaks and is made again, but what the drafter is told first is lost.

    Args:
        worker: the drafter's side.
        forgets: whether it is another one then.
    """

    def __init__(self, worker, forgets):
        super().__init__(worker)
        self._forgets, self._openings = forgets, 0

    def send(self, message):
        if isinstance(message, Opening):
            self._openings += 1
            if self._openings == 2:
                return
        elif isinstance(message, Outcome) and message.round == ROUND:
            self._answers.clear()
            raise ConnectionError("it broke")
        super().send(message)

    def revive(self):
        if self._forgets:
            self._worker._desk = None
        return True


class Through(Inline):
    """A channel over such a link."""

    def __init__(self, forgets):
        object.__setattr__(self, "forgets", forgets)

    @contextmanager
    def link(self, drafter, forecast, verifier, clock):
        yield Reconnected(worker_for(drafter, forecast, verifier, clock), self.forgets)


def run(target, drafter, forecast, channel):
    return specdec.generate(FullVerifier(target), drafter, [1, 2, 3], 40, forecast=forecast, channel=channel)


class Attentive(ModelDrafter):
    """It notes the rows that it was asked to draft for."""

    rows: list[list[int]]

    def draft(self, context, noise):
        self.rows.append(context.tokens[0, : int(context.lengths[0])].tolist())
        return super().draft(context, noise)


@pytest.mark.parametrize("forgets", [False, True], ids=["the same", "another"])
def test_a_drafter_that_lacks_tokens_is_told_all_rows_anew(tiny_target, tiny_draft, forgets):
    drafter = Attentive(tiny_draft, length=3)
    drafter.rows = []
    plain = run(tiny_target, NullDrafter(), None, Inline())
    result = run(tiny_target, drafter, AllAccepted(), Through(forgets))
    assert result.row() == plain.row()
    assert result.metrics.faults["drafter: is gone: it broke"] == 1
    assert result.metrics.faults["drafter: lacks tokens of the rows, and is told them anew"] == 1
    whole = [1, 2, 3, *plain.row()]
    assert all(row == whole[: len(row)] for row in drafter.rows), "it drafted from rows with holes"
    assert len(drafter.rows[-1]) > len(whole) / 2, "it never drafted again"


class Once(ModelDrafter):
    """It begins one time."""

    begun = 0

    def begin(self, target, seq):
        self.begun += 1
        if self.begun > 1:
            raise ValueError("never again")
        super().begin(target, seq)


def test_one_that_refuses_them_is_not_told_again(tiny_target, tiny_draft):
    drafter = Once(tiny_draft, length=3)
    result = run(tiny_target, drafter, AllAccepted(), Through(True))
    assert result.row() == run(tiny_target, NullDrafter(), None, Inline()).row()
    assert result.metrics.faults["drafter: does not read the rows anew: never again"] == 1
    assert drafter.begun == 2


@pytest.mark.parametrize("off", [{"since": 1}, {"lengths": 1}], ids=["since", "lengths"])
def test_an_outcome_that_leaves_a_hole_is_not_taken(tiny_target, off):
    drafter = ModelDrafter(tiny_target, length=2)
    seq = Sequences.start([[1, 2, 3], [4, 5]], 20, (), None, torch.device("cpu"))
    verifier = FullVerifier(tiny_target)
    worker = worker_for(drafter, DraftTopK(1), verifier, time.perf_counter)
    worker.handle(opening(seq, verifier, specdec.Ratio(), 0))
    two_B = torch.tensor([3, 2])
    told = Outcome(7, 0, two_B, torch.tensor([[6], [6]]), two_B, two_B + 1, two_B * 0 - 1, two_B < 0)
    told = replace(told, generation=worker._desk.generation)
    gap = replace(told, **{name: getattr(told, name) + torch.tensor([0, one]) for name, one in off.items()})
    answer = worker.handle(gap)
    assert answer.lacking and answer.draft.size == 0 and not answer.hit.any()
    assert worker._desk.seq.lengths.tolist() == [3, 2]
    over = replace(gap, ended=torch.tensor([False, True]))
    assert not worker.handle(over).lacking, "a row that has ended needs no draft"


def test_an_outcome_of_rows_that_were_never_told_is_answered(tiny_target):
    worker = worker_for(NullDrafter(), DraftTopK(1), FullVerifier(tiny_target), time.perf_counter)
    one_B = torch.ones(1, dtype=torch.int64)
    answer = worker.handle(Outcome(7, 3, one_B, one_B[None], one_B, one_B + 1, one_B, one_B == 0))
    assert (answer.generation, answer.round, answer.lacking, answer.draft.size) == (7, 3, True, 0)
