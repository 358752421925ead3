"""Drafts at every place of a text that is known: which of a drafter's guesses were right.

B rows, N draft nodes, M = N + 1, R ranks, D depths, S token slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from drafters.roots import DraftModel, Roots, fit
from drafters.static_tree import StaticTree
from experiments.replies import Text, padded
from specdec import Draft, Sampling, Verdict, tree
from specdec.acceptance import Ratio
from specdec.decode import noise_for
from specdec.protocols import Drafter
from specdec.sequences import Sequences
from verifiers import FullVerifier


@dataclass(frozen=True)
class Followed(StaticTree):
    """The likeliest tokens at every place of a text, side by side: what any tree of so many ranks holds of it.

    The whole tree has R^D nodes, of which only those behind the text's own tokens are ever accepted: the others
    are left out, and so are their children.

    Attributes:
        ahead: int64 [B, D], the tokens that follow; what is not known may be any.
    """

    ahead: Tensor = field(compare=False)

    @classmethod
    def wide(cls, ranks: int, ahead_BD: Tensor) -> Followed:
        """So many ranks at each place."""
        levels = range(ahead_BD.shape[1])
        return cls(tuple((*(0,) * level, rank) for level in levels for rank in range(ranks)), ahead_BD)

    def grow(self, model: DraftModel, roots: Roots, depth: int, vocabulary: int) -> Draft:
        """The first ``depth`` levels: the model reads the token that follows, whichever rank it has."""
        logits_BV, node_B1, tokens, parents = roots.logits[:, 0], roots.nodes, [], []
        above_B1 = torch.full_like(node_B1, tree.ROOT)
        for level in range(depth):
            next_B1 = self.ahead[:, level : level + 1]
            likely_BR = logits_BV.topk(self.fanout).indices
            tokens.append(likely_BR)
            parents.append(above_B1.expand_as(likely_BR))
            right_BR = (likely_BR == next_B1) & (above_B1 != tree.PAD)
            right_B1, rank_B1 = right_BR.max(1, keepdim=True)
            above_B1 = torch.where(right_B1, level * self.fanout + rank_B1, tree.PAD)
            if level + 1 < depth:
                logits_BV = fit(model.grow(next_B1, node_B1), vocabulary)[:, 0]
                node_B1 = torch.full_like(node_B1, roots.fed + level)
        model.remember()
        return Draft(torch.cat(tokens, 1), torch.cat(parents, 1), roots.lengths[:, 0], fanout=self.fanout)


@dataclass(frozen=True)
class Counts:
    """How often a node had children, and how often the child of each rank was the token that followed.

    Only nodes count all of whose tokens followed, the last committed token as depth 0.

    Attributes:
        tested: int64 [D].
        accepted: int64 [D, R].
    """

    tested: Tensor
    accepted: Tensor

    @classmethod
    def none(cls, depths: int, ranks: int) -> Counts:
        """Nothing was counted."""
        return cls(torch.zeros(depths, dtype=torch.int64), torch.zeros(depths, ranks, dtype=torch.int64))

    @classmethod
    def of(cls, draft: Draft, ahead_BD: Tensor, known_B: Tensor, ranks: int) -> Counts:
        """Of a draft, whose rows know ``known_B`` of the tokens ahead; of children the first ``ranks`` count."""
        found = cls.none(ahead_BD.shape[1], ranks)
        table_BMR, node_B = draft.children[..., :ranks], torch.zeros_like(known_B)
        width = table_BMR.shape[2]
        for depth in range(ahead_BD.shape[1] if width else 0):
            child_BR = table_BMR.gather(1, node_B[:, None, None].expand(-1, 1, width))[:, 0]
            tested_B = (child_BR >= 0).any(1) & (depth < known_B)
            token_BR = draft.tokens.gather(1, child_BR.clamp(min=0))
            right_BR = (child_BR >= 0) & (token_BR == ahead_BD[:, depth, None]) & tested_B[:, None]
            found.tested[depth] = tested_B.sum()
            found.accepted[depth, :width] = right_BR.sum(0)
            right_B, rank_B = right_BR.max(1)
            known_B = torch.where(right_B, known_B, 0)
            node_B = torch.where(right_B, child_BR.gather(1, rank_B[:, None])[:, 0] + 1, 0)
        return found

    def __add__(self, other: Counts) -> Counts:
        """Both."""
        return Counts(self.tested + other.tested, self.accepted + other.accepted)


@torch.inference_mode()
def followed(
    verifier: FullVerifier,
    drafter: Drafter,
    texts: Sequence[Text],
    ranks: int,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Counts:
    """Let a drafter draft at every place of some replies but the first, the target having read what is before.

    A drafter of trees proposes the ``ranks`` likeliest tokens at each place, as deep as its own drafts are; one
    that knows no such trees proposes what it does.

    Args:
        verifier: runs the target, which commits the replies' tokens whatever it thinks of them.
        drafter: on the target's device; its shape is another one afterwards.
        texts: the rows.
        ranks: R.
        sampling: the law that the replies were decoded under, greedy if None.
        seed: of the drafter's noise.

    Raises:
        ValueError: the drafter does not fit the target.
    """
    tokens_BS, ends_B = (part.to(verifier.device) for part in padded(texts))
    longest = max(len(text.tokens) - text.prompt for text in texts)
    prompts = [text.tokens[: text.prompt] for text in texts]
    seq = Sequences.start(prompts, longest + 1, (), sampling, verifier.device)
    # A round commits a token behind its draft: with room for it, the last one of a reply is drafted too.
    seq = replace(seq, limits=ends_B + 1)
    depths = depth_of(drafter)
    follow(drafter, ranks, tokens_BS[:, :1].expand(-1, depths))
    drafter.begin(verifier, seq)
    verifier.begin(seq, drafter.wants)
    noise, counts = noise_for(seq, seed, Ratio()), Counts.none(depths, ranks)
    while bool((seq.lengths < ends_B).any()):
        nothing = Draft.empty(seq.lengths)
        evidence = verifier.score(seq, nothing)
        verdict = Verdict(nothing.tokens, torch.zeros_like(ends_B), ahead(tokens_BS, seq.lengths, 1)[:, 0])
        seq = verifier.commit(seq, nothing, verdict)
        ahead_BD = ahead(tokens_BS, seq.lengths, depths)
        follow(drafter, ranks, ahead_BD)
        draft = drafter.draft(seq.context(evidence.along(verdict)), noise)
        counts += Counts.of(draft, ahead_BD, ends_B - seq.lengths, ranks)
    return counts


def ahead(tokens_BS: Tensor, lengths_B: Tensor, count: int) -> Tensor:
    """int64 [B, count]: the tokens behind the first ``lengths_B``; at the end of a row any."""
    place_BD = lengths_B[:, None] + torch.arange(count, device=lengths_B.device)
    return tokens_BS.gather(1, place_BD.clamp(max=tokens_BS.shape[1] - 1))


def takes_trees(drafter: Drafter) -> bool:
    """Whether a drafter can be given the tree that it is to grow."""
    return "tree" in signature(type(drafter)).parameters


def depth_of(drafter: Drafter) -> int:
    """D: levels of a drafter's trees; of other drafts the most that there may be."""
    held: Any = drafter
    return int(held.shape.length) if takes_trees(drafter) else max(1, drafter.size)


def follow(drafter: Drafter, ranks: int, ahead_BD: Tensor) -> None:
    """Have a drafter of trees grow the one that follows a text."""
    if takes_trees(drafter):
        held: Any = drafter
        wide = Followed.wide(ranks, ahead_BD)
        held.shape = replace(held.shape, width=1, nodes=None, tree=wide, confidence=None)
