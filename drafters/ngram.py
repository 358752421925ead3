"""Prompt lookup: the last few tokens occurred before, so propose what followed them then.

B rows, S token slots, N draft nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drafters.window import check_length
from specdec.kernels import here
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Want


class NgramDrafter:
    """Prompt lookup decoding (Saxena, 2023; LLMA, Yang et al., arXiv 2304.04487).

    Looks for the latest earlier occurrence of the last ``max_ngram`` tokens, then of ever fewer down to
    ``min_ngram``, and proposes up to ``length`` tokens that followed it.

    Args:
        length: tokens to propose.
        max_ngram: longest match to look for.
        min_ngram: shortest match to trust.

    Raises:
        ValueError: a length below 1, or not 1 <= min_ngram <= max_ngram.
    """

    wants: tuple[Want, ...] = ()
    static = True

    def __init__(self, length: int = 10, max_ngram: int = 3, min_ngram: int = 1) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"n-grams must satisfy 1 <= min_ngram <= max_ngram, not {min_ngram} and {max_ngram}")
        self.length, self.max_ngram, self.min_ngram = check_length(length), max_ngram, min_ngram

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.length

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Nothing to forget: every draft looks at the whole row."""

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain for every row in which a match is found."""
        end_B = latest_match(context.tokens, context.lengths, self.min_ngram, self.max_ngram)
        counts_B = torch.where(end_B >= 0, context.lengths - 1 - end_B, 0).clamp(max=self.length)
        where_BN = end_B[:, None] + 1 + torch.arange(self.length, device=end_B.device)
        tokens_BN = context.tokens.gather(1, where_BN.clamp(max=context.tokens.shape[1] - 1))
        return Draft.chain(tokens_BN, context.lengths, counts_B)


def latest_match(tokens_BS: Tensor, lengths_B: Tensor, shortest: int, longest: int) -> Tensor:
    """int64 [B]: last slot of the latest earlier occurrence of the longest suffix that has one, -1 for none."""
    if here(tokens_BS):
        from specdec.kernels import choice

        return choice.latest_match(tokens_BS, lengths_B, shortest, longest)
    slot_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    last_B1 = lengths_B[:, None] - 1
    end_B = torch.full_like(lengths_B, -1)
    matches_BS = slot_S < last_B1
    for back in range(min(longest, tokens_BS.shape[1])):
        # Slot s matches so far; does the token ``back`` slots before it equal the one ``back`` before the last?
        wanted_B1 = tokens_BS.gather(1, (last_B1 - back).clamp(min=0))
        same_BS = tokens_BS.roll(back, 1) == wanted_B1
        matches_BS = matches_BS & same_BS & (slot_S >= back)
        if back + 1 >= shortest:
            found_B = torch.where(matches_BS, slot_S, -1).amax(1)
            end_B = torch.where(found_B >= 0, found_B, end_B)
    return end_B
