"""The ratio rule: speculative sampling, on any token tree.

B rows, N nodes, M = N + 1 (the last committed token, then the nodes), R siblings, D depth slots, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec import tree
from specdec.noise import Noise
from specdec.types import Draft, Verdict


@dataclass(frozen=True)
class Ratio:
    """Accept x with probability min(1, p(x)/q(x)); on rejection p <- norm(max(p - q, 0)).

    Leviathan et al., arXiv 2211.17192, and Chen et al., arXiv 2302.01318, for a chain; visiting the children
    of a node in order makes it multi-round sampling on a tree (SpecInfer, arXiv 2305.09781). A draft without
    laws has q = the point mass on x, which covers n-grams and top-k trees; at temperature 0 p is a point mass.
    """

    lossless = True
    coupled = False
    weighs = True

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """Row m of ``law_BMV`` is p after the last committed token (m = 0) or after node m - 1."""
        next_BM, left_BMV = torch.full_like(draft.positions, -1), law_BMV
        fanout = draft.children.shape[-1]
        for rank in range(fanout):
            child_BM = draft.children[..., rank]
            chance_BM = at(left_BMV, token(draft, child_BM)) / proposed(draft, child_BM)
            accepts_BM = noise.accepts(torch.where(child_BM >= 0, chance_BM, 0), draft.positions, rank)
            next_BM = torch.where(accepts_BM & (next_BM < 0), child_BM, next_BM)
            if rank + 1 < fanout:
                left_BMV = residual(draft, left_BMV, child_BM)
        path_BD, accepted_B, end_B = tree.deepest(draft.ancestors, draft.depths, chosen(draft, next_BM))
        end_BM = row(end_B, law_BMV)
        last_B1V, refused_B1R = (
            law_BMV.gather(1, end_BM),
            draft.children.gather(1, row(end_B, draft.children)),
        )
        for rank in range(fanout):  # every child of the path's end was rejected
            last_B1V = residual(draft, last_B1V, refused_B1R[..., rank])
        tokens_B1 = noise.draw(last_B1V, draft.positions.gather(1, end_B[:, None]))
        return Verdict(path_BD, accepted_B, tokens_B1[:, 0])


def chosen(draft: Draft, next_BM: Tensor) -> Tensor:
    """bool [B, N]: whether each node is the child that its parent goes on to."""
    index_N = torch.arange(draft.size, device=next_BM.device)
    return (next_BM.gather(1, draft.parents.clamp(min=-1) + 1) == index_N) & (draft.parents != tree.PAD)


def residual(draft: Draft, law_BMV: Tensor, child_BM: Tensor) -> Tensor:
    """norm(max(p - q, 0)), where q is the law of the child just rejected; p itself where there is none.

    Where nothing is left (p = q, so a rejection has probability 0) p is kept: any law is right there.
    """
    x_BM1, there_BM1 = token(draft, child_BM)[..., None], (child_BM >= 0)[..., None]
    if draft.laws is None:
        left_BMV = law_BMV.scatter(-1, x_BM1, 0)
    else:
        left_BMV = (law_BMV - draft.laws.gather(1, row(child_BM.clamp(min=0), draft.laws))).clamp(min=0)
    mass_BM1 = left_BMV.sum(-1, keepdim=True)
    return torch.where(there_BM1 & (mass_BM1 > 0), left_BMV / mass_BM1, law_BMV)


def proposed(draft: Draft, child_BM: Tensor) -> Tensor | float:
    """q(x) of each child [B, M]; 1 for a point mass."""
    if draft.laws is None:
        return 1.0
    own_BN = draft.laws.gather(-1, draft.tokens[..., None])[..., 0]
    return own_BN.gather(1, child_BM.clamp(min=0))


def token(draft: Draft, child_BM: Tensor) -> Tensor:
    """int64 [B, M]: the token of each child (any, where there is no child)."""
    return draft.tokens.gather(1, child_BM.clamp(min=0))


def at(law_BMV: Tensor, token_BM: Tensor) -> Tensor:
    """The probability of one token in each law, [B, M]."""
    return law_BMV.gather(-1, token_BM[..., None])[..., 0]


def row(index: Tensor, table: Tensor) -> Tensor:
    """An index [B] or [B, M] made ready to gather whole rows of a table [B, ., V]."""
    index_BM = index.reshape(len(index), -1)
    return index_BM[..., None].expand(-1, -1, table.shape[-1])
