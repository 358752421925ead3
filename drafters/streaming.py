"""Draft models whose forwards yield several tokens each (Speculative Streaming, arXiv 2402.11131).

B rows, X roots per row, V vocabulary, E further tokens of a forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drafters.model import ModelDrafter
from drafters.rollout import Streams
from drafters.shape import Shape
from specdec.runtime import CachedModel


class StreamingDrafter(ModelDrafter):
    """A ``ModelDrafter`` that drafts ``length`` tokens in ceil(length / η) forwards instead of ``length``.

    Args:
        model: the draft model.
        streams: what its forwards say beyond their next token; on the model's device.
        length, width, nodes, tokenizer: see ``ModelDrafter``.

    Raises:
        ValueError: streams of more than one token on a tree, or what ``ModelDrafter`` refuses.
    """

    def __init__(
        self,
        model: CachedModel,
        streams: Streams,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tokenizer: Any | None = None,
    ) -> None:
        super().__init__(model, length, width, nodes, tokenizer)
        self.shape = Shape(length, width, nodes, streams)


@dataclass(frozen=True, eq=False)
class Successors:
    """The streams of a model whose next token depends on the last one only: known without being computed.

    Attributes:
        tables: int64 [E, V], the token that stands 1 to E places behind each token.
    """

    tables: Tensor

    @classmethod
    def of(cls, successors_V: Tensor, tokens_per_step: int, device: str | torch.device) -> Successors:
        """Of the table of next tokens. Raises ValueError unless ``tokens_per_step`` is a whole number from 1."""
        if tokens_per_step < 1 or tokens_per_step != int(tokens_per_step):
            raise ValueError(
                f"tokens_per_step must be a whole number of at least 1, not {tokens_per_step}: 1 is no streaming"
            )
        tables_EV = successors_V.new_empty(int(tokens_per_step) - 1, len(successors_V))
        behind_V = torch.arange(len(successors_V), device=successors_V.device)
        for table_V in tables_EV:
            behind_V = successors_V[behind_V]
            table_V.copy_(behind_V)
        return cls(tables_EV.to(device))

    @property
    def tokens_per_step(self) -> int:
        """η = E + 1."""
        return len(self.tables) + 1

    def __call__(self, token_BX: Tensor, count: int) -> Sequence[Tensor]:
        """The ``count`` tokens behind each token, in one gather."""
        return self.tables[:count, token_BX].unbind(0) if count else ()
