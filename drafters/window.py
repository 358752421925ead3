"""The number of tokens that a drafter looks ahead."""

from __future__ import annotations

import torch

from specdec.types import Context, Draft


def check_length(length: int) -> int:
    """Raises ValueError unless a drafter's window is at least 1."""
    if length < 1:
        raise ValueError(f"length must be at least 1 token, not {length}; NullDrafter decodes without drafts")
    return length


def chains(proposals: list[list[int]], context: Context) -> Draft:
    """A chain per row, of any length. They were not drawn from a law, so they carry none."""
    width = max(map(len, proposals))
    padded = [[*proposal, *[0] * (width - len(proposal))] for proposal in proposals]
    device = context.lengths.device
    tokens_BN = torch.tensor(padded, dtype=torch.int64, device=device)
    counts_B = torch.tensor([len(proposal) for proposal in proposals], device=device)
    return Draft.chain(tokens_BN, context.lengths, counts_B)
