"""What may become of a window that is being verified: outcomes, and how likely each of them is.

B rows, N draft nodes, M = N + 1 (the last committed token, then the nodes), K candidates per place, X outcomes per
row, R siblings, V target vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import tree
from specdec.types import Draft

SURE = 0.999  # no token is taken to be accepted, or refused, beyond doubt
DOUBT = 0.3  # share of what both laws allow that is not counted on: the target's law is an estimate here


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
        """The ``budget`` outcomes of the largest chance to be reached and to be right; None takes all.

        A draft with laws [B, N, V] is taken to be judged by them, one without by the target's own draws.
        """
        foreseen = drawn(candidates, draft) if draft.laws is None else weighed(candidates, draft, draft.laws)
        gain_BMK = foreseen.masked_fill(refused(candidates.tokens, draft), -torch.inf)
        count = candidates.tokens.shape[-1]
        flat_BX = gain_BMK.flatten(1)
        best = flat_BX.topk(min(budget or flat_BX.shape[1], flat_BX.shape[1]), -1)
        nodes_BX = torch.where(best.values > -torch.inf, best.indices // count - 1, tree.PAD)
        return cls(nodes_BX, candidates.tokens.flatten(1).gather(1, best.indices))


def judged(window: Draft, weighs: bool) -> Draft:
    """A window as the acceptance rule sees it: without laws where it does not look at them."""
    return window if weighs else replace(window, laws=None)


def drawn(candidates: Candidates, draft: Draft) -> Tensor:
    """float [B, M, K]: log-chance of each outcome where the target draws a token, whatever the drafter proposes.

    Path and token are drawn by the same law, so that a token which is no child needs no child to be refused first.
    """
    return arrival(logarithm(candidates.window.float().exp()), draft)[..., None] + candidates.scores


def weighed(candidates: Candidates, draft: Draft, laws_BNV: Tensor) -> Tensor:
    """float [B, M, K]: log-chance of each outcome where a token x of a law q is accepted with min(1, p(x)/q(x)).

    What is drawn if all children are refused follows norm((p - q)+). Taken at its word, a drafter's estimate of p
    (its own law) would let nothing be refused: so ``DOUBT`` of min(p, q) is left out. Children of one place are
    taken to have one law, and are tried in order.
    """
    own_BN = laws_BNV.gather(-1, draft.tokens[..., None])[..., 0].clamp(min=torch.finfo(laws_BNV.dtype).tiny)
    taken_BN = (1 - DOUBT) * (candidates.window.float().exp() / own_BN).clamp(max=1)
    p_BMK = candidates.scores.float().exp()
    q_BMK = proposed(candidates.tokens, draft, laws_BNV).masked_fill(p_BMK == 0, 0)
    shared_BMK = torch.minimum(p_BMK, q_BMK)
    # Of the tokens that are not named all is taken to be shared that can be: a bound, and small.
    others_BM = torch.minimum(unnamed(p_BMK), unnamed(q_BMK)).masked_fill(childless(draft), 0)
    left_BM = 1 - (1 - DOUBT) * (shared_BMK.sum(-1) + others_BM)
    drawn_BMK = ((p_BMK - (1 - DOUBT) * shared_BMK) / left_BM[..., None]).log()
    tried_BN = logarithm(taken_BN) + elders_refused(taken_BN, draft)
    return (arrival(tried_BN, draft) + refusal(taken_BN, draft))[..., None] + drawn_BMK


def of_window(scores_BMV: Tensor, draft: Draft) -> Tensor:
    """[B, N]: the entry of each node's token in its parent's row."""
    above_BN = (draft.parents.clamp(min=tree.ROOT) + 1)[..., None]
    rows_BNV = scores_BMV.gather(1, above_BN.expand(-1, -1, scores_BMV.shape[-1]))
    return rows_BNV.gather(-1, draft.tokens[..., None])[..., 0]


def logarithm(chance: Tensor) -> Tensor:
    """Of chances, none of which is taken for certain."""
    return chance.clamp(1 - SURE, SURE).log()


def arrival(taken_BN: Tensor, draft: Draft) -> Tensor:
    """float [B, M]: log-chance that the accepted path comes to each place; minus infinity for padding.

    Args:
        taken_BN: log-chance of each node to be accepted where its parent is.
        draft: the window.
    """
    real_BN = draft.parents != tree.PAD
    path_BN = (draft.ancestors * torch.where(real_BN, taken_BN, 0)[:, None]).sum(-1)
    return pad(path_BN.masked_fill(~real_BN, -torch.inf), (1, 0))


def refusal(taken_BN: Tensor, draft: Draft) -> Tensor:
    """float [B, M]: log-chance that every child of a place is refused, of chances to be accepted."""
    real_BN = draft.parents != tree.PAD
    left_BN = torch.where(real_BN, logarithm(1 - taken_BN), 0)
    above_BN = torch.where(real_BN, draft.parents + 1, 0)
    return pad(torch.zeros_like(left_BN), (1, 0)).scatter_add(1, above_BN, left_BN)


def elders_refused(taken_BN: Tensor, draft: Draft) -> Tensor:
    """float [B, N]: log-chance that every earlier child of a node's parent is refused."""
    index_N = torch.arange(draft.size, device=taken_BN.device)
    elder_BNN = (draft.parents[..., None] == draft.parents[:, None]) & (index_N < index_N[:, None])
    return (elder_BNN * logarithm(1 - taken_BN)[:, None]).sum(-1)


def childless(draft: Draft) -> Tensor:
    """bool [B, M]: whether a place has no child."""
    if draft.size == 0:
        return torch.ones_like(draft.positions, dtype=torch.bool)
    return draft.children[..., 0] < 0


def proposed(tokens_BMK: Tensor, draft: Draft, laws_BNV: Tensor) -> Tensor:
    """float [B, M, K]: chance of candidates by the law that a place's children were drawn from, 0 without any."""
    if draft.size == 0:
        return torch.zeros_like(tokens_BMK, dtype=laws_BNV.dtype)
    child_BM = draft.children[..., 0]
    place_BMK = child_BM.clamp(min=0)[..., None] * laws_BNV.shape[-1] + tokens_BMK
    q_BX = laws_BNV.flatten(1).gather(1, place_BMK.flatten(1))
    return q_BX.reshape(tokens_BMK.shape).masked_fill(childless(draft)[..., None], 0)


def unnamed(chance_BMK: Tensor) -> Tensor:
    """float [B, M]: what is left of a law beside its named tokens."""
    return (1 - chance_BMK.sum(-1)).clamp(min=0)


def refused(tokens_BMK: Tensor, draft: Draft) -> Tensor:
    """bool [B, M, K]: whether a candidate is a child of its place: had it been right, the path would go on."""
    if draft.size == 0:
        return torch.zeros_like(tokens_BMK, dtype=torch.bool)
    child_BMR = draft.children
    child_token_BMR = draft.tokens.gather(1, child_BMR.clamp(min=0).flatten(1)).reshape(child_BMR.shape)
    same_BMKR = tokens_BMK[..., None] == child_token_BMR[:, :, None]
    return (same_BMKR & (child_BMR >= 0)[:, :, None]).any(-1)
