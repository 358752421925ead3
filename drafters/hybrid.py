"""Two drafters, the second of which drafts where the first has nothing to propose.

B rows, N draft nodes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from specdec import tree
from specdec.noise import Noise
from specdec.protocols import Drafter, Verifier
from specdec.runtime import CachedModel, models_of
from specdec.sequences import Sequences
from specdec.types import Advice, Context, Draft, Want


class HybridDrafter:
    """Looks up what costs nothing to look up, and asks a model for the rest.

    The hybrid of SuffixDecoding (Oliaro et al., arXiv 2411.04975): EAGLE-3 drafts where no long suffix repeats.
    How sure the first drafter has to be is its own value, such as ``min_match``. Which of the two drafts for a row
    follows from its committed tokens, so that every law is the one that was drawn from. Where all rows have a
    proposal the second is not asked; it is told later what the target said meanwhile.

    Args:
        first: asked in every round.
        second: asked for rows without a proposal.
    """

    def __init__(self, first: Drafter, second: Drafter) -> None:
        self.first, self.second = first, second
        self._untold: Advice | None = None  # of rounds in which the second was not asked

    @property
    def wants(self) -> tuple[Want, ...]:
        """What either wants."""
        return tuple(dict.fromkeys((*self.first.wants, *self.second.wants)))

    @property
    def static(self) -> bool:
        """Whether both can be replayed; both are then asked in every round."""
        return self.first.static and self.second.static

    @property
    def borrows(self) -> bool:
        """Whether one needs the target's network."""
        return any(getattr(drafter, "borrows", False) for drafter in (self.first, self.second))

    @property
    def models(self) -> tuple[CachedModel, ...]:
        """Those of both."""
        return tuple(dict.fromkeys((*models_of(self.first), *models_of(self.second))))

    @property
    def identity(self) -> object:
        """What a recording may take it for."""
        return self, *(getattr(drafter, "identity", drafter) for drafter in (self.first, self.second))

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return max(self.first.size, self.second.size)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the last generation. Raises ValueError where one does not fit the target."""
        self.first.begin(target, seq)
        self.second.begin(target, seq)
        self._untold = None

    def draft(self, context: Context, noise: Noise) -> Draft:
        """The first one's proposal for every row that has one, else the second one's."""
        if not self.static:  # then nobody records it, and the host may look
            context = replace(context, static=False)
        found = self.first.draft(beside(self.second, context), noise)
        # A row that is full needs none.
        served_B = (found.parents != tree.PAD).any(1) | (context.room < 2)
        untold = both(self._untold, context.advice)
        if not context.static and bool(served_B.all()):
            self._untold = untold
            return found
        self._untold = None
        other = self.second.draft(beside(self.first, replace(context, advice=untold)), noise)
        return other if found.size == 0 else either(served_B, found, other)


def beside(drafter: Drafter, context: Context) -> Context:
    """The context of one beside whom a drafter may have drafted what was verified."""
    return replace(context, others=max(context.others, drafter.size))


def both(earlier: Advice | None, later: Advice | None) -> Advice | None:
    """The advice of two times, as one."""
    if earlier is None or later is None:
        return later if earlier is None else earlier
    return earlier.then(later)


def either(first_B: Tensor, first: Draft, second: Draft) -> Draft:
    """Of each row one draft: ``first`` where it is said so."""
    size = max(first.size, second.size)
    first, second = first.padded(size), second.padded(size)
    known = first.fanout is not None and second.fanout is not None
    laws = None
    if first.laws is not None or second.laws is not None:
        vocabulary = next(draft.laws.shape[2] for draft in (first, second) if draft.laws is not None)
        laws = torch.where(first_B[:, None, None], law_of(first, vocabulary), law_of(second, vocabulary))
    return Draft(
        torch.where(first_B[:, None], first.tokens, second.tokens),
        torch.where(first_B[:, None], first.parents, second.parents),
        first.base,
        laws,
        max(first.fanout or 0, second.fanout or 0) if known else None,
    )


def law_of(draft: Draft, vocabulary: int) -> Tensor:
    """[B, N, V]: the laws that tokens were drawn from, point masses where there are none."""
    if draft.laws is not None:
        return draft.laws
    law_BNV = torch.zeros(*draft.tokens.shape, vocabulary, device=draft.tokens.device)
    return law_BNV.scatter(2, draft.tokens[..., None], 1.0)
