"""Between a drafter and the loop: a drafter that fails or answers nonsense costs speed, never tokens.

B rows, N nodes, V target vocabulary.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from specdec import tree
from specdec.noise import Noise
from specdec.protocols import Drafter, Verifier
from specdec.sequences import Sequences
from specdec.trace import Trace
from specdec.types import Context, Draft, Tap

log = logging.getLogger(__name__)

# How far a law's sum may be from 1: a float32 softmax over a large vocabulary stays within 1e-5.
TOLERANCE = 1e-4


class Guarded:
    """A drafter whose drafts are always well-formed.

    A drafter that raises costs a round of plain decoding, and so does a malformed row. A law that is not a
    law, or gives its own token no chance, is withdrawn: no law is lossless, a wrong one is not. Every fault
    is counted in the trace, and logged when it is first seen.
    """

    def __init__(self, drafter: Drafter, trace: Trace) -> None:
        self._drafter, self._trace = drafter, trace
        self._vocabulary = 0

    @property
    def wants(self) -> tuple[Tap, ...]:
        return self._drafter.wants

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Raises what the drafter raises: here target and drafter find out that they do not fit."""
        self._vocabulary = target.vocab_size
        self._drafter.begin(target, seq)

    def draft(self, context: Context, noise: Noise) -> Draft:
        try:
            return self._admit(self._drafter.draft(context, noise), context)
        except Exception as error:  # whatever a drafter raises, the committed tokens must survive
            self._fault(f"raised {type(error).__name__}: {error}", error)
            return Draft.empty(context.lengths)

    def _admit(self, draft: Draft, context: Context) -> Draft:
        check_shapes(draft, context, self._vocabulary)
        if draft.size == 0:
            return draft
        sound_B = torch.ones_like(context.lengths, dtype=torch.bool)
        for message, holds_B in soundness(draft, context, self._vocabulary):
            if not bool(holds_B.all()):
                self._fault(message)
            sound_B = sound_B & holds_B
        if not bool(sound_B.all()):
            parents_BN = torch.where(sound_B[:, None], draft.parents, tree.PAD)
            draft = replace(draft, parents=parents_BN, base=context.lengths)
        return self._withdraw(cut_to_room(draft, context))

    def _withdraw(self, draft: Draft) -> Draft:
        if draft.laws is None or draft.size == 0:
            return draft
        true_BN = is_law(draft.laws, draft.tokens) | (draft.parents == tree.PAD)
        if bool(true_BN.all()):
            return draft
        self._fault("a law is not finite, not normalised, negative, or gives its own token no chance")
        point_BNV = torch.zeros_like(draft.laws).scatter_(-1, draft.tokens.clamp(min=0)[..., None], 1)
        return replace(draft, laws=torch.where(true_BN[..., None], draft.laws, point_BNV))

    def _fault(self, message: str, error: Exception | None = None) -> None:
        message = f"{type(self._drafter).__name__}: {message}"
        if self._trace.fault(message) == 1:
            log.warning("%s (decoding goes on without this draft)", message, exc_info=error)


def check_shapes(draft: Draft, context: Context, vocabulary: int) -> None:
    """Raises ValueError if the tensors of a draft do not fit together."""
    shape = (len(context.lengths), draft.tokens.shape[-1])
    if draft.tokens.shape != shape or draft.parents.shape != shape or draft.base.shape != shape[:1]:
        raise ValueError(f"tokens and parents of a draft must have shape {shape}, base {shape[:1]}")
    if draft.laws is not None and draft.laws.shape != (*shape, vocabulary):
        raise ValueError(f"laws of a draft must have shape {(*shape, vocabulary)}, not {tuple(draft.laws.shape)}")


def soundness(draft: Draft, context: Context, vocabulary: int) -> list[tuple[str, Tensor]]:
    """What must hold of every row, with bool [B] saying where it does."""
    parents_BN, pad_BN = draft.parents, draft.parents == tree.PAD
    index_N = torch.arange(draft.size, device=parents_BN.device)
    legal_BN = (draft.tokens >= 0) & (draft.tokens < vocabulary)
    ordered_BN = (parents_BN < index_N) & (parents_BN >= tree.ROOT)
    hangs_on_pad_BN = (parents_BN >= 0) & pad_BN.gather(1, parents_BN.clamp(0, draft.size - 1))
    return [
        ("a draft for another committed length", draft.base == context.lengths),
        ("a token is not in the target's vocabulary", (legal_BN | pad_BN).all(1)),
        ("a parent does not stand before its child", ((ordered_BN & ~hangs_on_pad_BN) | pad_BN).all(1)),
    ]


def cut_to_room(draft: Draft, context: Context) -> Draft:
    """Without nodes too deep to be committed, and without columns in which no row has a node.

    Nodes go by their depth, never by their token, so their laws stay true.
    """
    fits_BN = (draft.depths < context.room[:, None]) & (draft.parents != tree.PAD)
    if bool(fits_BN.all()):
        return draft
    parents_BN = torch.where(fits_BN, draft.parents, tree.PAD)
    used_N = (parents_BN != tree.PAD).any(0).nonzero()
    size = int(used_N[-1]) + 1 if len(used_N) else 0
    # Padding takes a legal token, so that the target can embed it.
    tokens_BN = torch.where(parents_BN == tree.PAD, 0, draft.tokens)
    laws_BNV = None if draft.laws is None else draft.laws[:, :size]
    return Draft(tokens_BN[:, :size], parents_BN[:, :size], draft.base, laws_BNV)


def is_law(laws_BNV: Tensor, tokens_BN: Tensor) -> Tensor:
    """bool [B, N]: the law is finite, non-negative, sums to 1, and gives its token a chance."""
    whole_BN = (laws_BNV.sum(-1) - 1).abs() < TOLERANCE  # false for NaN and infinity too
    own_BN = laws_BNV.gather(-1, tokens_BN[..., None])[..., 0]
    return whole_BN & (laws_BNV.amin(-1) >= 0) & (own_BN > 0)
