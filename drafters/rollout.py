"""Drafting with a causal language model: a sampled chain, or a tree of its most likely tokens.

B rows, S token slots, X roots per row, Y tokens of all roots in one forward, N nodes, W nodes of one level,
K children per node, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from drafters.confidence import Confidence
from drafters.roots import DraftModel, Roots, fit
from specdec import tree
from specdec.noise import Noise
from specdec.types import Draft


class Streams(Protocol):
    """What a forward of a draft model says beyond its own next token (arXiv 2402.11131)."""

    @property
    def tokens_per_step(self) -> int:
        """η, the tokens that a forward yields per branch, the model's own included."""
        ...

    def __call__(self, token_BX: Tensor, count: int) -> Sequence[Tensor]:
        """``count`` < η further tokens [B, X] each, behind the model's own. They are chosen, never drawn."""
        ...


@dataclass(frozen=True)
class OneToken:
    """No streams: a forward says the next token and no more."""

    tokens_per_step = 1

    def __call__(self, token_BX: Tensor, count: int) -> Sequence[Tensor]:
        """None."""
        return ()


def chain(
    model: DraftModel,
    roots: Roots,
    noise: Noise,
    length: int,
    vocabulary: int,
    streams: Streams,
    confidence: Confidence | None = None,
) -> Draft:
    """A chain of ``length`` tokens behind every root, rows b * X + x, in ceil(length / η) forwards in all.

    Of the η tokens of a forward the first is drawn from the model's law, the others come from its streams; the
    next forward reads them all. Laws go along where the acceptance rule can use them: not when greedy, not when
    noise is shared. A streamed token follows from those before it, so its law is the point mass.

    Behind the first token that ``confidence`` does not trust a chain is padding, and once all chains have ended
    there are no more forwards, unless shapes must not depend on the rows.
    """
    sampling, logits_BXV, seen_BXV = roots.sampling, roots.logits, roots.seen
    above_BX, fed = roots.nodes, roots.fed
    going_BX, counts_BX = torch.ones_like(roots.lengths, dtype=torch.bool), torch.zeros_like(roots.lengths)
    tokens: list[Tensor] = []
    laws: list[Tensor] = []
    while len(tokens) < length:
        if sampling.greedy:  # chosen, not drawn
            token_BX = sampling.choice(logits_BXV, seen_BXV)
        else:
            laws.append(sampling.law(logits_BXV, seen_BXV))
            token_BX = noise.propose(laws[-1], roots.lengths, len(tokens))
        if confidence is not None:
            law_BXV = sampling.scores(logits_BXV, seen_BXV).softmax(-1) if sampling.greedy else laws[-1]
            counts_BX = counts_BX + going_BX
            going_BX = going_BX & confidence(law_BXV, token_BX)
        streamed = streams(token_BX, min(streams.tokens_per_step, length - len(tokens)) - 1)
        step = [token_BX, *streamed]
        tokens += step
        if not (sampling.greedy or noise.coupled):
            laws += [torch.zeros_like(laws[-1]).scatter_(2, known_BX[..., None], 1) for known_BX in streamed]
        if seen_BXV is not None:
            seen_BXV = seen_BXV.scatter(2, torch.stack(step, -1), True)
        if confidence is not None and not (roots.static or bool(going_BX.any())):
            break
        if len(tokens) < length:
            logits_BXV, above_BX = _read(model, step, above_BX, fed, roots.single, vocabulary)
            fed += len(step) * token_BX.shape[1]
    model.remember()
    ships = laws and not noise.coupled
    base_R = roots.lengths.flatten()
    return Draft.chain(
        torch.stack(tokens, -1).flatten(0, 1),
        base_R,
        torch.full_like(base_R, length) if confidence is None else counts_BX.flatten(),
        torch.stack(laws, 2).flatten(0, 1) if ships else None,
    )


def _read(
    model: DraftModel, step: Sequence[Tensor], above_BX: Tensor, fed: int, single: bool, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Read the tokens of a step, [B, X] each, behind nodes ``above_BX``: logits [B, X, V] after the last ones, and
    where those stand. All first tokens lie before all second ones."""
    size, width = len(step), above_BX.shape[1]
    place_BY = torch.arange(fed, fed + size * width, device=above_BX.device).expand(len(above_BX), -1)
    parents = [above_BX, *place_BY.split(width, 1)[:-1]]
    # The head runs on all of them: so it does where streams are trained, each on a state of its own.
    logits_BYV = model.grow(_side_by_side(step), _side_by_side(parents), chain=single)
    return fit(logits_BYV[:, -width:], vocabulary), place_BY[:, -width:]


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """In one tensor; a single part as it is, which spares a launch."""
    return torch.cat(list(parts), 1) if len(parts) > 1 else parts[0]


def top_k_tree(
    model: DraftModel, roots: Roots, depth: int, width: int, nodes: int | None, vocabulary: int
) -> Draft:
    """A tree of likely tokens behind every root: per level the ``width`` likeliest paths grow ``width`` children.

    Of all candidates of a root the ``nodes`` with the likeliest paths are kept (EAGLE-2, Li et al., arXiv
    2406.16858). The tokens are chosen, not drawn, so the draft carries no laws.
    """
    logits_BXWV, fed = roots.logits[:, :, None], roots.fed
    score_BXW = torch.zeros_like(logits_BXWV[..., 0], dtype=torch.float32)
    node_BXW = torch.full_like(roots.nodes[..., None], tree.ROOT)  # where the level's nodes stand in the draft
    fed_BXW = roots.nodes[..., None]  # and in the model's own tree, which holds only nodes that have children
    tokens, parents, scores, size = [], [], [], 0
    for level in range(depth):
        gain_BXWV = logits_BXWV.float().log_softmax(-1)
        gain_BXWK, token_BXWK = gain_BXWV.topk(min(width, vocabulary), -1)
        score_BXN = (score_BXW[..., None] + gain_BXWK).flatten(2)
        tokens.append(token_BXWK.flatten(2))
        parents.append(node_BXW[..., None].expand_as(token_BXWK).flatten(2))
        scores.append(score_BXN)
        if level + 1 < depth:
            score_BXW, best_BXW = score_BXN.topk(min(width, score_BXN.shape[2]), -1)
            chosen_BXW = tokens[-1].gather(2, best_BXW)
            above_BXW = fed_BXW.gather(2, best_BXW // token_BXWK.shape[-1])
            logits_BYV = fit(model.grow(chosen_BXW.flatten(1), above_BXW.flatten(1)), vocabulary)
            logits_BXWV = logits_BYV.unflatten(1, best_BXW.shape[1:])
            node_BXW = size + best_BXW
            fed_BXW = fed + torch.arange(best_BXW[0].numel(), device=best_BXW.device).view_as(best_BXW[:1])
            fed_BXW = fed_BXW.expand_as(best_BXW)
            fed += best_BXW[0].numel()
        size += score_BXN.shape[2]
    model.remember()
    tokens_RN, parents_RN, scores_RN = (torch.cat(part, 2).flatten(0, 1) for part in (tokens, parents, scores))
    if nodes is not None and nodes < size:
        tokens_RN, parents_RN = _likeliest(tokens_RN, parents_RN, scores_RN, nodes)
    return Draft(tokens_RN, parents_RN, roots.lengths.flatten(), fanout=width)


def _likeliest(tokens_BN: Tensor, parents_BN: Tensor, scores_BN: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    # A parent's path is at least as likely as its child's and stands first: the best nodes form a tree.
    kept_BN = scores_BN.sort(dim=-1, descending=True, stable=True).indices[:, :nodes].sort(-1).values
    place_BN = torch.zeros_like(tokens_BN).scatter(
        1, kept_BN, torch.arange(nodes, device=kept_BN.device).expand_as(kept_BN)
    )
    above_BN = parents_BN.gather(1, kept_BN)
    moved_BN = place_BN.gather(1, above_BN.clamp(min=0))
    return tokens_BN.gather(1, kept_BN), torch.where(above_BN >= 0, moved_BN, above_BN)
