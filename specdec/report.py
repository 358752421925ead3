"""What a round did, in one small tensor: all that the host, or a drafter elsewhere, learns of it.

B rows, F faults that a draft may have, J new tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels import here
from specdec.sequences import Sequences, new_tokens
from specdec.types import Draft, Verdict

FAULTS = (
    "a draft for another committed length",
    "a token is not in the target's vocabulary",
    "a parent does not stand before its child",
    "a law is not finite, not normalised, negative, or gives its own token no chance",
)
BEFORE, COMMITTED, ENDED, NODE = 1, 4, 6, 7  # some columns of a report
FACTS = 8  # columns of a report before those of the faults
TOKENS = FACTS + len(FAULTS)  # and before those of the tokens


@dataclass(frozen=True)
class Step:
    """What one round added to a row.

    Attributes:
        row: which row.
        length: committed tokens before it.
        ended: whether the row is done now.
        tokens: the new tokens.
    """

    row: int
    length: int
    ended: bool
    tokens: list[int]


def report(before: Sequences, after: Sequences, draft: Draft, verdict: Verdict, faults_BF: Tensor) -> Tensor:
    """int64 [B, 8 + F + J]: all that the host, or a drafter elsewhere, learns of a round, in one piece.

    Whether the row had ended, its length, depth and nodes of its draft, tokens committed and nodes accepted,
    whether it has ended now, the last accepted node, what was wrong with its draft (F, see ``FAULTS``), and its
    new tokens (J, with rubbish behind those committed).
    """
    if here(before.lengths):
        return _reported(before, after, draft, verdict, faults_BF)
    depth_B = draft.depths.amax(1) if draft.size else torch.zeros_like(before.lengths)
    nodes_B = (draft.depths > 0).sum(1)
    committed_B = after.lengths - before.lengths
    facts = (
        before.ended,
        before.lengths,
        depth_B,
        nodes_B,
        committed_B,
        verdict.accepted,
        after.ended,
        verdict.end,
    )
    table_BX = torch.stack([fact.long() for fact in facts], 1)
    return torch.cat([table_BX, faults_BF.long(), new_tokens(draft, verdict)], 1)


def _reported(before: Sequences, after: Sequences, draft: Draft, verdict: Verdict, faults_BF: Tensor) -> Tensor:
    """``report`` in one kernel."""
    from specdec.kernels.rows import reported

    rows = (before.ended, before.lengths), (after.ended, after.lengths)
    return reported(*rows, (draft.tokens, draft.depths), verdict.parts, faults_BF, FACTS)
