"""The pipelined loop in numbers, with messages that get lost or come late: the law stays the target's.

Rules that read laws may give other tokens where a draft is missing, but never other chances.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from exhaustive import autoregressive
from scipy import stats
from test_lossless import NEW, PROMPT, SMALL, TARGET, WARM

from drafters import ModelDrafter
from specdec import Block, Ratio
from specdec.book import Book, taken
from specdec.channel.inline import InlineLink
from specdec.decode import noise_for, opening
from specdec.forecast import DraftTopK
from specdec.loop import pipelined
from specdec.messages import Early, Outcome, Window
from specdec.partner import Partner
from specdec.sequences import Sequences
from specdec.trace import Trace
from specdec.worker import DraftWorker
from verifiers import FullVerifier

BATCHES, ROWS = 8, 2_500
RULES = [Ratio(), Block()]


class Faulty(InlineLink):
    """Loses, repeats and holds back messages."""

    def __init__(self, worker, random):
        super().__init__(worker)
        self._random, self._late = random, []

    def send(self, message):
        chance = self._random.random() if isinstance(message, Early | Outcome) else 1
        for _ in range(0 if chance < 0.2 else 2 if chance < 0.3 else 1):
            super().send(message)

    def receive(self, timeout):
        answer = super().receive(timeout)
        if isinstance(answer, Window) and self._random.random() < 0.2:
            self._late.append(answer)
            return None
        return self._late.pop() if answer is None and self._late else answer


def decoded(rule, seed, link):
    """The rows of one batch after the pipelined loop."""
    target, seq = FullVerifier(TARGET), Sequences.start([PROMPT] * ROWS, NEW, (), WARM)
    worker, trace = DraftWorker(ModelDrafter(SMALL, length=2), DraftTopK(3), torch.device("cpu")), Trace()
    target.begin(seq)
    partner = Partner(link(worker), trace, patience=1e-6)
    partner.open(opening(seq, target, rule, seed), seq.lengths.device)
    seq = pipelined(seq, partner, target, rule, noise_for(seq, seed, rule), trace)
    return seq.tokens[:, len(PROMPT) :].tolist(), trace


def p_value(rule, link):
    """Of the hypothesis that the rows of all batches are draws from the target's law."""
    seen, total = Counter(), ROWS * BATCHES
    for seed in range(BATCHES):
        seen.update(map(tuple, decoded(rule, seed, link)[0]))
    law = autoregressive(TARGET, PROMPT, NEW, WARM)
    likely = [tokens for tokens, chance in law.items() if chance * total >= 5]
    counts = [seen[tokens] for tokens in likely]
    expected = [law[tokens] * total for tokens in likely]
    counts, expected = [*counts, total - sum(counts)], [*expected, total - sum(expected)]
    return float(stats.chisquare(counts, expected).pvalue)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_without_faults(rule):
    _, trace = decoded(rule, 0, InlineLink)
    assert any(any(handover.hit) for handover in trace.handovers) and not trace.faults
    assert p_value(rule, InlineLink) > 1e-3


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_with_messages_lost_repeated_and_late(rule):
    random = Random(7)
    _, trace = decoded(rule, 0, lambda worker: Faulty(worker, random))
    assert trace.faults
    assert p_value(rule, lambda worker: Faulty(worker, random)) > 1e-3


def test_a_branch_chosen_for_its_tokens_is_noticed(monkeypatch):
    def chosen(self, base_B, node_B, token_B):
        # Of all branches the one with the largest first token: no longer a draw from the law that it reports.
        rows, size = self.hypotheses.nodes.shape
        if self.drafts.size == 0:
            return taken(self.drafts, torch.arange(rows)), torch.zeros(rows, dtype=torch.bool)
        first_BX = self.drafts.tokens[:, 0].unflatten(0, (rows, size))
        best_B = first_BX.argmax(1) + size * torch.arange(rows)
        draft = taken(self.drafts, best_B)
        lengths_B = base_B + 1 + (node_B >= 0) * (node_B + 1)
        return type(draft)(draft.tokens, draft.parents, lengths_B, draft.laws, 1), torch.ones(rows, dtype=bool)

    monkeypatch.setattr(Book, "look_up", chosen)
    assert p_value(Ratio(), InlineLink) < 1e-6
