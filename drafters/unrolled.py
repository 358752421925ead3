"""A head in training that goes on with what it made itself, as it will when it drafts.

The training-time test of EAGLE-3 (Li et al., arXiv 2503.01840): the first step reads the target's features, each
later one what the step before made, and attends to what it would have in its cache then.

B rows, T pairs of a token and the feature before it, X hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Read = Callable[..., Tensor]


class Past:
    """Keys and values of all steps so far, handed to transformers' attention as a cache."""

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Those of this step too, side by side with the earlier ones."""
        held = self._held.setdefault(layer, [])
        held.append((keys, values))
        return torch.cat([part[0] for part in held], 2), torch.cat([part[1] for part in held], 2)


def unrolled(read: Read, features_BTX: Tensor, steps: int) -> Iterator[Tensor]:
    """What a head makes in every step, [B, T, X] each.

    At place t step j stands for a draft whose last true feature is that of pair t - j: places before j stand for
    nothing, and whoever counts losses leaves them out.

    Args:
        read: (features, positions [1, T], attention) to what the head makes of them and of its tokens.
        features_BTX: the target's.
        steps: how many.
    """
    past, size = Past(), features_BTX.shape[1]
    positions_1T = torch.arange(size, device=features_BTX.device)[None]
    for step in range(steps):
        seen = seen_by(step, size, features_BTX.device)
        own_BTX = read(features_BTX, positions_1T, attention_mask=seen, past_key_values=past)
        yield own_BTX
        features_BTX = torch.cat([torch.zeros_like(own_BTX[:, :1]), own_BTX[:, :-1]], 1)


def seen_by(step: int, size: int, device: torch.device) -> Tensor:
    """bool [1, 1, T, (step + 1) * T]: the pairs of the target up to ``step`` before, and the draft's own since."""
    behind_TT = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)
    parts = [behind_TT >= step, *(behind_TT == step - earlier for earlier in range(1, step + 1))]
    return torch.cat(parts, 1)[None, None]
