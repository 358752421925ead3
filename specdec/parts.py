"""The parts of a round at the drafter's side: called by the host, or replayed on a device.

B rows, M = N + 1 places of a window, X columns of a report or hidden size, V vocabulary, J new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec import tree
from specdec.book import Book
from specdec.exit import Exit
from specdec.guard import Guarded
from specdec.hypotheses import Candidates, Hypotheses
from specdec.messages import Outcome
from specdec.noise import Noise
from specdec.protocols import Forecast
from specdec.report import BEFORE, COMMITTED, ENDED, NODE, TOKENS
from specdec.rows import followed
from specdec.runtime.huggingface import Network
from specdec.sequences import Sequences
from specdec.types import Advice, Draft


@dataclass(frozen=True)
class Settled:
    """What an outcome means on the drafter's side.

    Attributes:
        window: the prepared drafts, padding where there was none.
        hit: bool [B].
        facts: int64 [B, 3], for the host: hit, whether a fresh draft is wanted, and outcomes in the book.
    """

    window: Draft
    hit: Tensor
    facts: Tensor


def look(seq: Sequences, window: Draft, advice: Advice | None, drafter: Guarded) -> Tensor:
    """The drafter's own logits over a window."""
    return drafter.look(seq.context(advice), window)


def read(exit: Exit, outlet: Network, early_BMX: Tensor, seq: Sequences, window: Draft) -> Candidates:
    """What the early exit says of a window, from its states."""
    return exit.read(outlet, early_BMX, window, seq.sampling)


def foresee(
    seq: Sequences, window: Draft, own_BMV: Tensor | None, early: Candidates | None, forecast: Forecast
) -> Hypotheses:
    """The outcomes that a forecast makes likely."""
    return forecast(window, None if own_BMV is None else seq.sampling.soft(own_BMV), early)


def prepare(seq: Sequences, window: Draft, outcomes: Hypotheses, drafter: Guarded, noise: Noise) -> Book:
    """Drafts for outcomes."""
    return Book.of(seq.lengths, outcomes, drafter.branch(seq.context(), window, outcomes, noise))


def resume(seq: Sequences, window: Draft, own_BMV: Tensor, guarded: Guarded, noise: Noise) -> Draft:
    """A fresh draft, from what the drafter found when it looked at the window."""
    return guarded.resume(seq.context(), window, own_BMV, noise)


def settle(book: Book | None, report_BX: Tensor) -> Settled:
    """Find what has come true; see ``specdec.report``. As few operations as can be: the target waits for it."""
    before_B, ended_B = report_BX[:, BEFORE], report_BX[:, ENDED] == 1
    lengths_B = before_B + report_BX[:, COMMITTED]
    window, hit_B = Draft.empty(lengths_B), torch.zeros_like(ended_B)
    if book is not None:
        token_B = report_BX.gather(1, (report_BX[:, COMMITTED] + (TOKENS - 1))[:, None])[:, 0]
        prepared, hit_B = book.look_up(before_B, report_BX[:, NODE], token_B)
        hit_B = hit_B & ~ended_B
        parents_BN = torch.where(hit_B[:, None], prepared.parents, tree.PAD)
        window = Draft(prepared.tokens, parents_BN, lengths_B, prepared.laws, prepared.fanout)
    counts_B = torch.zeros_like(before_B) if book is None else book.counts
    return Settled(window, hit_B, torch.stack([hit_B, ~(hit_B | ended_B), counts_B], 1))


def follow(seq: Sequences, report_BX: Tensor) -> Sequences:
    """The rows after an outcome."""
    before_B, new_BJ, ended_B = report_BX[:, BEFORE], report_BX[:, TOKENS:], report_BX[:, ENDED] == 1
    lengths_B = before_B + report_BX[:, COMMITTED]
    return followed(seq, Outcome(0, 0, before_B, new_BJ, before_B, lengths_B, report_BX[:, NODE], ended_B))
