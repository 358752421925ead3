"""Drafting with a causal language model: a sampled chain, or a tree of its most likely tokens.

B rows, N nodes, W nodes of one level, K children per node, V target vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.noise import Noise
from specdec.runtime import CachedModel
from specdec.sampling import seen_tokens
from specdec.types import Context, Draft


def chain(model: CachedModel, context: Context, noise: Noise, length: int, vocabulary: int) -> Draft:
    """A chain of ``length`` tokens, each drawn from the model's law under the target's sampling.

    Laws go along where the acceptance rule can use them: not when greedy, not when noise is shared.
    """
    sampling = context.sampling
    # Of its own last chain the model has not read the last token, and of the target's round the correction.
    logits_B1V = model.advance(
        context.tokens, context.lengths, behind=2 if context.static else None, chain=True
    ).logits
    seen_BV = seen_tokens(context.tokens, context.lengths, vocabulary) if sampling.penalises else None
    tokens, laws = [], []
    for step in range(length):
        scores_B1V, seen_B1V = fit(logits_B1V, vocabulary), None if seen_BV is None else seen_BV[:, None]
        if sampling.greedy:  # chosen, not drawn
            token_B1 = sampling.scores(scores_B1V, seen_B1V).argmax(-1)
        else:
            laws.append(sampling.law(scores_B1V, seen_B1V))
            token_B1 = noise.propose(laws[-1], context.lengths[:, None], step)
        tokens.append(token_B1)
        if seen_BV is not None:
            seen_BV = seen_BV.scatter(1, token_B1, True)
        if step + 1 < length:
            logits_B1V = model.grow(token_B1, torch.full_like(token_B1, step - 1))
    model.remember()
    ships = laws and not noise.coupled
    counts_B = torch.full_like(context.lengths, length)
    return Draft.chain(torch.cat(tokens, 1), context.lengths, counts_B, torch.cat(laws, 1) if ships else None)


def top_k_tree(
    model: CachedModel, context: Context, depth: int, width: int, nodes: int | None, vocabulary: int
) -> Draft:
    """A tree of likely tokens: per level the ``width`` likeliest paths grow ``width`` children each.

    Of all candidates the ``nodes`` with the likeliest paths are kept (EAGLE-2, Li et al., arXiv 2406.16858).
    The tokens are chosen, not drawn, so the draft carries no laws.
    """
    behind = depth + 1 if context.static else None
    logits_BWV = model.advance(context.tokens, context.lengths, behind=behind).logits
    score_BW = torch.zeros_like(context.lengths[:, None], dtype=torch.float32)
    node_BW = torch.full_like(context.lengths[:, None], -1)  # where the level's nodes stand in the draft
    fed_BW = node_BW  # where they stand in the model's own tree, which holds only nodes that have children
    tokens, parents, scores, fed, size = [], [], [], 0, 0
    for level in range(depth):
        gain_BWV = fit(logits_BWV, vocabulary).float().log_softmax(-1)
        gain_BWK, token_BWK = gain_BWV.topk(min(width, vocabulary), -1)
        score_BX = (score_BW[..., None] + gain_BWK).flatten(1)
        tokens.append(token_BWK.flatten(1))
        parents.append(node_BW[..., None].expand_as(token_BWK).flatten(1))
        scores.append(score_BX)
        if level + 1 < depth:
            score_BW, best_BW = score_BX.topk(min(width, score_BX.shape[1]), -1)
            above_BW = best_BW // token_BWK.shape[-1]
            logits_BWV = model.grow(tokens[-1].gather(1, best_BW), fed_BW.gather(1, above_BW))
            node_BW, fed_BW = (
                size + best_BW,
                fed + torch.arange(best_BW.shape[1], device=best_BW.device).expand_as(best_BW),
            )
            fed += best_BW.shape[1]
        size += score_BX.shape[1]
    model.remember()
    tokens_BN, parents_BN, scores_BN = torch.cat(tokens, 1), torch.cat(parents, 1), torch.cat(scores, 1)
    if nodes is not None and nodes < size:
        tokens_BN, parents_BN = _likeliest(tokens_BN, parents_BN, scores_BN, nodes)
    return Draft(tokens_BN, parents_BN, context.lengths, fanout=width)


def _likeliest(tokens_BN: Tensor, parents_BN: Tensor, scores_BN: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    # A parent's path is at least as likely as its child's and stands first: the best nodes form a tree.
    kept_BN = scores_BN.sort(dim=-1, descending=True, stable=True).indices[:, :nodes].sort(-1).values
    place_BN = torch.zeros_like(tokens_BN).scatter(
        1, kept_BN, torch.arange(nodes, device=kept_BN.device).expand_as(kept_BN)
    )
    above_BN = parents_BN.gather(1, kept_BN)
    moved_BN = place_BN.gather(1, above_BN.clamp(min=0))
    return tokens_BN.gather(1, kept_BN), torch.where(above_BN >= 0, moved_BN, above_BN)


def fit(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits [..., V] over the target's ids: embeddings padded to another size differ in width only."""
    missing = vocabulary - logits.shape[-1]
    return pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[..., :vocabulary]
