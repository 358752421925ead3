"""Two drafters, the second of which drafts where the first has nothing to propose.

B rows, N draft nodes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from specdec import tree
from specdec.book import either
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

    Raises:
        ValueError: they are to work on two devices.
    """

    def __init__(self, first: Drafter, second: Drafter) -> None:
        self.first, self.second = first, second
        self._untold: list[Advice | None] = []  # of rounds in which the second was not asked
        check_devices(self._devices)

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
    def device(self) -> torch.device | None:
        """Where one of them wants to draft, by its number where one has it; None where neither says."""
        return min(self._devices, key=lambda device: device.index is None, default=None)

    @property
    def _devices(self) -> list[torch.device]:
        named = (getattr(drafter, "device", None) for drafter in (self.first, self.second))
        return [torch.device(device) for device in named if device is not None]

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
        self._untold = []

    def draft(self, context: Context, noise: Noise) -> Draft:
        """The first one's proposal for every row that has one, else the second one's."""
        told = [*self._untold, context.advice]
        if not context.static:  # a recording that found advice here would repeat it for ever
            self._untold = told
        found = self.first.draft(beside(self.second, context), noise)
        # A row that is full needs none.
        served_B = (found.parents != tree.PAD).any(1) | (context.room < 2)
        if not context.static and bool(served_B.all()):
            return found
        other = self.second.draft(beside(self.first, replace(context, advice=Advice.joined(told))), noise)
        self._untold = []
        return other if found.size == 0 else either(served_B, with_laws(found, other), with_laws(other, found))


def check_devices(devices: list[torch.device]) -> None:
    """Raises ValueError unless all of them are one."""
    indices = {device.index for device in devices} - {None}  # without a number it may be any
    if len({device.type for device in devices}) > 1 or len(indices) > 1:
        raise ValueError(
            f"the two drafters are to work on {' and '.join(map(str, devices))}: put both on one device"
        )


def beside(drafter: Drafter, context: Context) -> Context:
    """The context of one beside whom a drafter may have drafted what was verified."""
    return replace(context, others=max(context.others, drafter.size))


def with_laws(draft: Draft, other: Draft) -> Draft:
    """A draft that has laws if the other one has: without any, its tokens come with point masses."""
    if draft.laws is not None or other.laws is None:
        return draft
    vocabulary = other.laws.shape[2]
    law_BNV = other.laws.new_zeros(*draft.tokens.shape, vocabulary)
    # Of padding the token may be anything.
    return replace(draft, laws=law_BNV.scatter(2, draft.tokens.clamp(0, vocabulary - 1)[..., None], 1.0))
