"""Next windows, prepared before it is known which of them is wanted.

B rows, X outcomes per row, N draft nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import tree
from specdec.hypotheses import Hypotheses
from specdec.types import Draft


@dataclass(frozen=True)
class Book:
    """Prepared drafts, found by the outcome that came true.

    Attributes:
        base: int64 [B], committed length before the outcome.
        hypotheses: the outcomes.
        drafts: one draft per row and outcome, [B * X, N]; row b's are b * X and the following.
        counts: int64 [B], outcomes of each row, padding left out.
    """

    base: Tensor
    hypotheses: Hypotheses
    drafts: Draft
    counts: Tensor

    @classmethod
    def of(cls, base_B: Tensor, hypotheses: Hypotheses, drafts: Draft) -> Book:
        """A book of these drafts."""
        return cls(base_B, hypotheses, drafts, (hypotheses.nodes != tree.PAD).sum(1))

    def look_up(self, base_B: Tensor, node_B: Tensor, token_B: Tensor) -> tuple[Draft, Tensor]:
        """The draft of each row for what came true, and bool [B]: whether there was one."""
        rows, size = self.hypotheses.nodes.shape
        found_BX = (self.hypotheses.nodes == node_B[:, None]) & (self.hypotheses.tokens == token_B[:, None])
        found_BX &= (self.base == base_B)[:, None]
        hit_B, index_B = found_BX.max(1)
        return taken(self.drafts, index_B + size * torch.arange(rows, device=index_B.device)), hit_B


def counted(book: Book | None, ended_B: Tensor) -> int:
    """Outcomes that are prepared; rows that have ended, bool [B], have none. Waits for the device."""
    return 0 if book is None else int(book.counts[~ended_B].sum())


def taken(draft: Draft, rows: Tensor) -> Draft:
    """Some rows of a draft."""
    laws = None if draft.laws is None else draft.laws[rows]
    return Draft(draft.tokens[rows], draft.parents[rows], draft.base[rows], laws, draft.fanout)


def either(hit_B: Tensor, prepared: Draft, fresh: Draft) -> Draft:
    """The prepared draft in the rows that hit, the fresh one in the others."""
    size = max(prepared.size, fresh.size)
    laws_1, laws_2 = laws_of(prepared, fresh), laws_of(fresh, prepared)
    prepared, fresh = prepared.padded(size), fresh.padded(size)
    tokens_BN, parents_BN = (
        torch.where(hit_B[:, None], one, other)
        for one, other in ((prepared.tokens, fresh.tokens), (prepared.parents, fresh.parents))
    )
    laws_BNV = None
    if laws_1 is not None and laws_2 is not None:
        laws_BNV = torch.where(hit_B[:, None, None], laws_1, laws_2)
    known = prepared.fanout is not None and fresh.fanout is not None
    fanout = max(prepared.fanout or 0, fresh.fanout or 0) if known else None
    return Draft(tokens_BN, parents_BN, torch.where(hit_B, prepared.base, fresh.base), laws_BNV, fanout)


def laws_of(draft: Draft, other: Draft) -> Tensor | None:
    """Laws [B, N, V] of a draft at the size of the larger one; a draft without nodes has any."""
    more = max(draft.size, other.size) - draft.size
    if draft.laws is not None:
        return pad(draft.laws, (0, 0, 0, more))
    if draft.size == 0 and other.laws is not None:
        return torch.zeros_like(other.laws)
    return None
