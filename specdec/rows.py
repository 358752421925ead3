"""The rows of a generation where the drafter works: from an opening, and from outcome to outcome.

B rows, S token slots, J tokens since the last message.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from specdec.messages import Opening, Outcome
from specdec.noise import Noise, Still
from specdec.sequences import Sequences


def rows_of(opening: Opening, device: torch.device) -> Sequences:
    """The rows as the drafter keeps them."""
    lengths_B = opening.lengths.to(device)
    return Sequences(
        tokens=opening.tokens.to(device),
        lengths=lengths_B,
        prompts=opening.prompts.to(device),
        limits=opening.limits.to(device),
        ended=torch.zeros_like(lengths_B, dtype=torch.bool),
        stop=lengths_B[:0],
        sampling=opening.sampling,
    )


def noise_of(opening: Opening, device: torch.device) -> Noise:
    """The noise of the generation, the same numbers as the target's side has."""
    if opening.sampling.greedy:
        return Still()
    rows, slots = opening.tokens.shape
    return Noise(opening.seed, torch.arange(rows, device=device), slots + 1, opening.coupled)


def lacking(seq: Sequences, outcome: Outcome) -> bool:
    """Whether an outcome leaves a row that goes on with tokens that nobody told."""
    told_B = (outcome.since <= seq.lengths) & (outcome.lengths <= outcome.since + outcome.tokens.shape[1])
    return not bool((told_B | outcome.ended).all())


def followed(seq: Sequences, outcome: Outcome) -> Sequences:
    """The rows after an outcome, which must not be ``lacking`` in tokens."""
    index_J = torch.arange(outcome.tokens.shape[1], device=seq.lengths.device)
    where_BJ = outcome.since[:, None] + index_J
    new_BJ = where_BJ < outcome.lengths[:, None]
    # Slots that commit nothing rewrite the row's first token by itself.
    tokens_BJ = torch.where(new_BJ, outcome.tokens, seq.tokens[:, :1])
    tokens_BS = seq.tokens.scatter(1, torch.where(new_BJ, where_BJ, 0), tokens_BJ)
    return replace(seq, tokens=tokens_BS, lengths=outcome.lengths, ended=outcome.ended)
