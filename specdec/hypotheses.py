"""What may become of a window that is being verified: outcomes, and how likely each of them is.

B rows, N draft nodes, M = N + 1 (the last committed token, then the nodes), K candidates per place, X outcomes per
row, R siblings, V target vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import tree
from specdec.types import Draft

SURE = 0.999  # no token is taken to be accepted, or refused, beyond doubt


@dataclass(frozen=True)
class Candidates:
    """Tokens that may follow the last committed token and each node, by one estimate of the target's law.

    Attributes:
        tokens: int64 [B, M, K].
        scores: float [B, M, K], their log-probabilities.
        window: float [B, N], log-probability of each node's own token after its parent.
    """

    tokens: Tensor
    scores: Tensor
    window: Tensor

    @classmethod
    def top(cls, scores_BMV: Tensor, draft: Draft, count: int) -> Candidates:
        """The ``count`` likeliest tokens under log-probabilities [B, M, V]."""
        top = scores_BMV.topk(min(count, scores_BMV.shape[-1]), -1)
        return cls(top.indices, top.values, of_window(scores_BMV, draft))


@dataclass(frozen=True)
class Hypotheses:
    """Outcomes that a next window is prepared for.

    Attributes:
        nodes: int64 [B, X], last accepted node, ``tree.ROOT`` where none is, ``tree.PAD`` for no hypothesis.
        tokens: int64 [B, X], the correction or bonus token behind it.
    """

    nodes: Tensor
    tokens: Tensor

    @property
    def size(self) -> int:
        """X."""
        return self.nodes.shape[1]

    @classmethod
    def likeliest(cls, candidates: Candidates, draft: Draft, budget: int | None) -> Hypotheses:
        """The ``budget`` outcomes of the largest chance to be reached and to be right; None takes all."""
        gain_BMK = reach(candidates.window, draft)[..., None] + candidates.scores
        gain_BMK = gain_BMK.masked_fill(refused(candidates.tokens, draft), -torch.inf)
        count = candidates.tokens.shape[-1]
        flat_BX = gain_BMK.flatten(1)
        best = flat_BX.topk(min(budget or flat_BX.shape[1], flat_BX.shape[1]), -1)
        nodes_BX = torch.where(best.values > -torch.inf, best.indices // count - 1, tree.PAD)
        return cls(nodes_BX, candidates.tokens.flatten(1).gather(1, best.indices))


def of_window(scores_BMV: Tensor, draft: Draft) -> Tensor:
    """[B, N]: the entry of each node's token in its parent's row."""
    above_BN = (draft.parents.clamp(min=tree.ROOT) + 1)[..., None]
    rows_BNV = scores_BMV.gather(1, above_BN.expand(-1, -1, scores_BMV.shape[-1]))
    return rows_BNV.gather(-1, draft.tokens[..., None])[..., 0]


def reach(window_BN: Tensor, draft: Draft) -> Tensor:
    """float [B, M]: log-chance that the accepted path ends at each place; minus infinity for padding.

    Every node on the way is accepted, with the chance of its token, and every child of the end is refused.
    """
    real_BN = draft.parents != tree.PAD
    chance_BN = window_BN.float().exp().clamp(1 - SURE, SURE)
    taken_BN = torch.where(real_BN, chance_BN.log(), 0)
    left_BN = torch.where(real_BN, (-chance_BN).log1p(), 0)
    on_way_BN = (draft.ancestors * taken_BN[:, None]).sum(-1).masked_fill(~real_BN, -torch.inf)
    above_BN = torch.where(real_BN, draft.parents + 1, 0)
    refused_BM = pad(torch.zeros_like(left_BN), (1, 0)).scatter_add(1, above_BN, left_BN)
    return pad(on_way_BN, (1, 0)) + refused_BM


def refused(tokens_BMK: Tensor, draft: Draft) -> Tensor:
    """bool [B, M, K]: whether a candidate is a child of its place: had it been right, the path would go on."""
    if draft.size == 0:
        return torch.zeros_like(tokens_BMK, dtype=torch.bool)
    child_BMR = draft.children
    child_token_BMR = draft.tokens.gather(1, child_BMR.clamp(min=0).flatten(1)).reshape(child_BMR.shape)
    same_BMKR = tokens_BMK[..., None] == child_token_BMR[:, :, None]
    return (same_BMKR & (child_BMR >= 0)[:, :, None]).any(-1)
