"""Where drafts of a model begin, and what a rollout asks of it.

B rows, S token slots, X roots per row, N nodes, W nodes of one forward, V target vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import tree
from specdec.hypotheses import Hypotheses
from specdec.runtime.model import Scores
from specdec.sampling import Sampling, seen_along, seen_tokens
from specdec.types import Context, Draft


class DraftModel(Protocol):
    """What a rollout asks of a model: any that answers to these, with a cache or without one."""

    @property
    def remembers(self) -> bool:
        """Whether it need not read again what it drafted itself, once that is committed."""
        ...

    def advance(
        self,
        tokens_BS: Tensor,
        lengths_B: Tensor,
        nodes: tuple[Tensor, Tensor] | None = None,
        *,
        behind: int | None = None,
        chain: bool = False,
        reads: int = 0,
    ) -> Scores:
        """See ``CachedModel.advance``."""
        ...

    def hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        """See ``CachedModel.hang``."""
        ...

    def grow(self, tokens_BW: Tensor, parents_BW: Tensor, chain: bool = False) -> Tensor:
        """See ``CachedModel.grow``."""
        ...

    def remember(self) -> None:
        """The tree is grown."""
        ...


@dataclass(frozen=True)
class Roots:
    """Where drafts begin: at the last committed token of each row, or at outcomes that may be.

    Attributes:
        logits: [B, X, V], the model's own after each root.
        lengths: int64 [B, X], tokens up to each root, itself included.
        nodes: int64 [B, X], where each stands in the model's tree, ``tree.ROOT`` for the last committed token.
        fed: nodes that the model's tree has.
        seen: bool [B, X, V], which tokens occurred; None where nobody asks.
        sampling: the law to draw under.
        static: whether shapes must not depend on the rows.
    """

    logits: Tensor
    lengths: Tensor
    nodes: Tensor
    fed: int
    seen: Tensor | None
    sampling: Sampling
    static: bool = False

    @property
    def single(self) -> bool:
        """Whether all that grows is one chain behind the last committed token."""
        return self.fed == 0 and self.nodes.shape[1] == 1

    @classmethod
    def committed(
        cls, model: DraftModel, context: Context, vocabulary: int, behind: int, chain: bool = False
    ) -> Roots:
        """The last committed token of each row; ``behind`` is how many tokens the model lacks at most."""
        waits = behind if context.static else None
        scores = model.advance(context.tokens, context.lengths, behind=waits, chain=chain, reads=context.reads)
        return cls.last(context, fit(scores.logits, vocabulary), 0, vocabulary)

    @classmethod
    def beside(cls, context: Context, window: Draft, logits_B1V: Tensor, vocabulary: int) -> Roots:
        """The last committed token of each row, whose logits are known, with a window in the model's tree."""
        return cls.last(context, logits_B1V, window.size, vocabulary)

    @classmethod
    def last(cls, context: Context, logits_B1V: Tensor, fed: int, vocabulary: int) -> Roots:
        """The last committed token of each row, whose logits are known, with so many nodes in the model's tree."""
        seen_BV = seen_if(context, vocabulary)
        return cls(
            logits_B1V,
            context.lengths[:, None],
            torch.full_like(context.lengths[:, None], tree.ROOT),
            fed,
            None if seen_BV is None else seen_BV[:, None],
            context.sampling,
            context.static,
        )

    @classmethod
    def supposed(
        cls, model: DraftModel, context: Context, window: Draft, outcomes: Hypotheses, vocabulary: int
    ) -> Roots:
        """Outcomes of a window that hangs in the model's tree, read in one forward."""
        above_BX = outcomes.nodes.clamp(min=tree.ROOT)
        logits_BXV = fit(model.grow(outcomes.tokens, above_BX), vocabulary)
        depths_BM = pad(window.depths, (1, 0))
        seen_BXV = None
        seen_BV = seen_if(context, vocabulary)
        if seen_BV is not None:
            seen_BMV = seen_along(seen_BV, window.tokens, window.ancestors)
            seen_BXV = seen_BMV.gather(1, (above_BX + 1)[..., None].expand(-1, -1, vocabulary))
            seen_BXV = seen_BXV.scatter(2, outcomes.tokens[..., None], True)
        return cls(
            logits_BXV,
            context.lengths[:, None] + depths_BM.gather(1, above_BX + 1) + 1,
            window.size + torch.arange(outcomes.size, device=above_BX.device).expand_as(above_BX),
            window.size + outcomes.size,
            seen_BXV,
            context.sampling,
            context.static,
        )


def seen_if(context: Context, vocabulary: int) -> Tensor | None:
    """bool [B, V]: which tokens occurred, None where the law does not ask."""
    return seen_tokens(context.tokens, context.lengths, vocabulary) if context.sampling.penalises else None


def fit(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits [..., V] over the target's ids: embeddings padded to another size differ in width only."""
    missing = vocabulary - logits.shape[-1]
    return pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[..., :vocabulary]
