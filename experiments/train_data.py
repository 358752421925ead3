"""Replies as batches for training, in an order that depends on seed and epoch alone.

B rows, S token slots, X hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from experiments.replies import Text, padded
from specdec import Tap
from specdec.runtime import CachedModel

Row = TypeVar("Row")

POOL = 32  # batches that are cut from rows of like length
# Slots of a batch are a multiple of this, so that shapes come again: for every new one a GPU's library of
# attention makes a plan, for which the host takes longer than for all else in a step.
GRAIN = 64
SHORTEST = 2  # tokens of a reply, so that one can be foretold from the one before


@dataclass(frozen=True)
class Batch:
    """Rows side by side.

    Attributes:
        tokens: int64 [B, S], padded at the end.
        lengths: int64 [B].
        wanted: bool [B, S], the places where the target's law decided a token of its reply.
    """

    tokens: Tensor
    lengths: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, texts: Sequence[Text], device: torch.device) -> Batch:
        """Texts as a batch on a device; on a CPU no longer than the longest."""
        tokens_BS, lengths_B = padded(texts)
        if device.type != "cpu":
            tokens_BS = pad(tokens_BS, (0, -tokens_BS.shape[1] % GRAIN))
        first_B, place_S = torch.tensor([text.prompt - 1 for text in texts]), torch.arange(tokens_BS.shape[1])
        wanted_BS = (place_S >= first_B[:, None]) & (place_S <= lengths_B[:, None] - 2)
        return cls(tokens_BS.to(device), lengths_B.to(device), wanted_BS.to(device))

    @torch.no_grad()
    def states(self, model: CachedModel, taps: Sequence[Tap]) -> dict[Tap, Tensor]:
        """By tap, float32 [B, S, X]: the target's states at every token, 0 behind a row's end."""
        rows, slots = self.tokens.shape
        model.begin(rows, slots, min(slots, model.network.max_positions or slots))
        # What pads a row is read as if it were text: nothing before it sees that.
        found = model.advance(self.tokens, torch.full_like(self.lengths, slots), taps=tuple(taps)).states
        place_S = torch.arange(slots, device=self.tokens.device)
        real_BS1 = (place_S < self.lengths[:, None])[..., None]
        return {tap: state.float() * real_BS1 for tap, state in found.items()}


@dataclass(frozen=True)
class Order:
    """Which rows are learnt from when.

    Attributes:
        sizes: tokens of every row.
        rows: B, of a batch. The last one of an epoch may be smaller.
        seed: of the order.
    """

    sizes: tuple[int, ...]
    rows: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.sizes) // self.rows)

    def batch(self, number: int) -> tuple[int, ...]:
        """The rows of a batch, counted from the first one of the training."""
        epoch, index = divmod(number, self.per_epoch)
        return _epoch(self, epoch)[index]


@lru_cache(maxsize=2)
def _epoch(order: Order, epoch: int) -> tuple[tuple[int, ...], ...]:
    """The batches of an epoch: rows of like length together, so that little is padding."""
    rng = random.Random(f"{order.seed}/{epoch}")
    rows = list(range(len(order.sizes)))
    rng.shuffle(rows)
    batches = [
        batch
        for some in cut(rows, POOL * order.rows)
        for batch in cut(sorted(some, key=order.sizes.__getitem__), order.rows)
    ]
    rng.shuffle(batches)
    return tuple(batches)


def cut(rows: Sequence[Row], size: int) -> list[tuple[Row, ...]]:
    """Parts of so many rows; the last one may be smaller."""
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]


def learnable(texts: Sequence[Text]) -> list[Text]:
    """The texts whose reply is long enough that there is something to learn."""
    return [text for text in texts if len(text.tokens) - text.prompt >= SHORTEST]
