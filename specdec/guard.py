"""Between a drafter and the loop: a drafter that fails or answers nonsense costs speed, never tokens.

B rows, N nodes, V target vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from inspect import unwrap
from typing import Any, cast

import torch
from torch import Tensor

from specdec import tree
from specdec.hypotheses import Hypotheses
from specdec.kernels import here
from specdec.noise import Noise
from specdec.protocols import BranchingDrafter, Drafter, Verifier
from specdec.report import FAULTS
from specdec.runtime import models_of
from specdec.runtime.replay import Replay
from specdec.sequences import Sequences
from specdec.trace import Trace
from specdec.types import Context, Draft, Want

log = logging.getLogger(__name__)

# How far a law's sum may be from 1: a float32 softmax over a large vocabulary stays within 1e-5.
TOLERANCE = 1e-4
# Larger trees are admitted operation by operation: one kernel counts siblings in a square of the nodes.
MOST_NODES = 256


class Guarded:
    """A drafter whose failures cost a round of plain decoding; every one is counted in the trace.

    Args:
        drafter: which.
        trace: takes the faults.
        replay: what may be recording; a failure is its then, else an empty draft would be replayed for good.
    """

    def __init__(self, drafter: Drafter, trace: Trace, replay: Replay | None = None) -> None:
        self._drafter, self._trace, self._replay = drafter, trace, replay
        self._vocabulary = 0
        trace.drafter = type(unwrap(cast(Any, drafter))).__name__

    @property
    def wants(self) -> tuple[Want, ...]:
        return self._drafter.wants

    @property
    def static(self) -> bool:
        return self._drafter.static

    @property
    def size(self) -> int:
        return self._drafter.size

    @property
    def identity(self) -> object:
        """What a recording may take it for."""
        return getattr(self._drafter, "identity", self._drafter)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Raises the drafter's ValueError: here target and drafter find out that they do not fit."""
        self._vocabulary = target.vocab_size
        try:
            self._drafter.begin(target, seq)
        except torch.OutOfMemoryError as error:  # of reading the prompt; any other error is a mistake to be seen
            self._trace.fault(f"raised {type(error).__name__}: {error}", error=error)

    def refusal(self, target: Verifier, seq: Sequences) -> str:
        """Begin; why the drafter cannot, empty where it can."""
        try:
            self.begin(target, seq)
        except ValueError as error:
            return str(error)
        except Exception as error:  # where it works there is nobody to see it
            log.warning("", exc_info=error)
            return f"the drafter cannot begin: {type(error).__name__}: {error}"
        return ""

    def draft(self, context: Context, noise: Noise) -> Draft:
        # Whoever cannot be recorded may look at the rows.
        asked = replace(context, static=context.static and self.static)
        return self._kept(context, lambda: self._drafter.draft(asked, noise))

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        drafter: Any = self._drafter
        return self._kept(context, lambda: drafter.resume(context, window, own_BMV, noise))

    def _kept(self, context: Context, make: Callable[[], Draft]) -> Draft:
        try:
            draft = make()
            check_shapes(draft, len(context.lengths), context.lengths.device, self._vocabulary)
            return draft if context.static else trimmed(draft, context.room)
        except Exception as error:  # whatever a drafter raises, the committed tokens must survive
            if self._replay is not None and self._replay.recording:
                raise
            self.failed(error)
            return Draft.empty(context.lengths)

    def look(self, context: Context, window: Draft) -> Tensor:
        """See ``BranchingDrafter``. Raises what the drafter raises, and ValueError for another shape."""
        own_BMV = cast(BranchingDrafter, self._drafter).look(context, window)
        shape = (len(context.lengths), window.size + 1, self._vocabulary)
        if own_BMV.shape != shape or not own_BMV.is_floating_point():
            raise ValueError(
                f"look must give floats of shape {shape}, not {tuple(own_BMV.shape)}, {own_BMV.dtype}"
            )
        return own_BMV

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """See ``BranchingDrafter``. Raises what the drafter raises, and ValueError for another shape."""
        drafts = cast(BranchingDrafter, self._drafter).branch(context, window, outcomes, noise)
        rows = len(context.lengths) * outcomes.size
        check_shapes(drafts, rows, context.lengths.device, self._vocabulary)
        return drafts

    def failed(self, error: Exception) -> None:
        """Count an error of the drafter; the caches of its models may have holes now."""
        for model in models_of(self._drafter):
            model.forget()
        self._trace.fault(f"raised {type(error).__name__}: {error}", error=error)


def admit(draft: Draft, lengths_B: Tensor, room_B: Tensor, vocabulary: int) -> tuple[Draft, Tensor]:
    """A draft without what is malformed, and [B, F], bool or 0 and 1: which of ``FAULTS`` each row had.

    A malformed row becomes padding. A law that is not a law, or gives its own token no chance, is withdrawn: no
    law is lossless, a wrong one is not. Nodes too deep to be committed go by their depth, never by their token, so
    that the laws of the others stay true.
    """
    if draft.size == 0:  # whatever it was made for: positions count from where the rows are
        return Draft.empty(lengths_B), torch.zeros(
            len(lengths_B), len(FAULTS), dtype=torch.bool, device=lengths_B.device
        )
    if draft.laws is None and draft.size <= MOST_NODES and here(draft.tokens):
        return _admitted(draft, lengths_B, room_B, vocabulary)
    faults = unsound(draft, lengths_B, vocabulary)
    sound_B1 = ~torch.stack(faults, 1).any(1, keepdim=True)
    kept_BN = sound_B1 & (draft.parents != tree.PAD) & (draft.depths < room_B[:, None])
    laws_BNV, false_B = draft.laws, torch.zeros_like(faults[0])
    if laws_BNV is not None:
        tokens_BN1 = torch.where(kept_BN, draft.tokens, 0)[..., None]
        true_BN = is_law(laws_BNV, tokens_BN1[..., 0]) | ~kept_BN
        point_BNV = torch.zeros_like(laws_BNV).scatter_(-1, tokens_BN1, 1)
        laws_BNV, false_B = torch.where(true_BN[..., None], laws_BNV, point_BNV), ~true_BN.all(1)
    parents_BN = torch.where(kept_BN, draft.parents, tree.PAD)
    # Padding takes a legal token, so that the target can embed it.
    admitted = Draft(torch.where(kept_BN, draft.tokens, 0), parents_BN, lengths_B, laws_BNV, draft.fanout)
    return admitted, torch.stack([*faults, false_B], 1)


def _admitted(draft: Draft, lengths_B: Tensor, room_B: Tensor, vocabulary: int) -> tuple[Draft, Tensor]:
    """``admit`` in one kernel."""
    from specdec.kernels.drafts import admitted

    kept = admitted(
        draft.tokens, draft.parents, draft.base, lengths_B, room_B, vocabulary, draft.fanout, len(FAULTS)
    )
    return Draft(kept.tokens, kept.parents, lengths_B, fanout=draft.fanout).of_depths(kept.depths), kept.faults


def check_shapes(draft: Draft, rows: int, device: torch.device, vocabulary: int) -> None:
    """Raises ValueError if the tensors of a draft do not fit together, or are of a wrong type or device."""
    shape = (rows, *draft.tokens.shape[-1:])
    if draft.tokens.shape != shape or draft.parents.shape != shape or draft.base.shape != shape[:1]:
        raise ValueError(f"tokens and parents of a draft must have shape {shape}, base {shape[:1]}")
    parts = (draft.tokens, draft.parents, draft.base)
    if any(part.dtype != torch.int64 or part.device != device for part in parts):
        raise ValueError(f"tokens, parents and base of a draft must be int64, on {device}")
    if draft.fanout is not None and draft.fanout < 1:
        raise ValueError(f"fanout of a draft must be at least 1, or None, not {draft.fanout}")
    if draft.laws is not None and not (draft.laws.is_floating_point() and draft.laws.device == device):
        raise ValueError(f"laws of a draft must be of a floating-point type, on {device}")
    if draft.laws is not None and draft.laws.shape != (*shape, vocabulary):
        raise ValueError(f"laws of a draft must have shape {(*shape, vocabulary)}, not {tuple(draft.laws.shape)}")


def unsound(draft: Draft, lengths_B: Tensor, vocabulary: int) -> list[Tensor]:
    """The first three of ``FAULTS``, bool [B] each."""
    parents_BN, pad_BN = draft.parents, draft.parents == tree.PAD
    index_N = torch.arange(draft.size, device=parents_BN.device)
    legal_BN = (draft.tokens >= 0) & (draft.tokens < vocabulary)
    ordered_BN = (parents_BN < index_N) & (parents_BN >= tree.ROOT)
    if draft.fanout == 1:
        ordered_BN &= parents_BN == index_N - 1
    elif draft.fanout is not None:
        ordered_BN &= tree.ranks(parents_BN) < draft.fanout
    hangs_on_pad_BN = (parents_BN >= 0) & pad_BN.gather(1, parents_BN.clamp(0, draft.size - 1))
    return [
        draft.base != lengths_B,
        ~(legal_BN | pad_BN).all(1),
        ~((ordered_BN & ~hangs_on_pad_BN) | pad_BN).all(1),
    ]


def trimmed(draft: Draft, room_B: Tensor) -> Draft:
    """Without columns in which no row has a node that can be committed."""
    used_BN = (draft.depths < room_B[:, None]) & (draft.parents != tree.PAD)
    used_N = used_BN.any(0).nonzero()
    size = int(used_N[-1]) + 1 if len(used_N) else 0
    if size == draft.size:
        return draft
    laws_BNV = None if draft.laws is None else draft.laws[:, :size]
    return Draft(draft.tokens[:, :size], draft.parents[:, :size], draft.base, laws_BNV, draft.fanout)


def is_law(laws_BNV: Tensor, tokens_BN: Tensor) -> Tensor:
    """bool [B, N]: the law is finite, non-negative, sums to 1, and gives its token a chance."""
    whole_BN = (laws_BNV.sum(-1) - 1).abs() < TOLERANCE  # false for NaN and infinity too
    own_BN = laws_BNV.gather(-1, tokens_BN[..., None])[..., 0]
    return whole_BN & (laws_BNV.amin(-1) >= 0) & (own_BN > 0)
