"""What a draft head borrows of its target. B rows, W tokens, X hidden size, V vocabulary."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Lender(Protocol):
    """A target's embedding, final norm and head: ``Network`` where it drafts, ``FrozenTarget`` where it learns."""

    @property
    def depth(self) -> int:
        """Number of layers: ``Tap(depth)`` is the state behind the last one."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def head_weight(self) -> Tensor:
        """[V, X], the head's."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        ...

    def embed(self, tokens_BW: Tensor) -> Tensor:
        """Embeddings [B, W, X] of tokens."""
        ...

    def norm(self, state_BWX: Tensor) -> Tensor:
        """States [B, W, X] as the head reads them, from states behind the last layer."""
        ...

    def head(self, state_BWX: Tensor) -> Tensor:
        """Logits [B, W, V] on states that ``norm`` gave."""
        ...

    def read_out(self, state_BWX: Tensor) -> Tensor:
        """Logits [B, W, V] of norm and head."""
        ...
