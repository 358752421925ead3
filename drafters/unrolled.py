"""A head in training that goes on with what it made itself, as it will when it drafts.

The training-time test of EAGLE-3 (Li et al., arXiv 2503.01840): the first step reads the target's features, each
later one what the step before made, and attends to what it would have in its cache then.

B rows, T pairs of a token and the feature before it, P places that count, X hidden size, D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from specdec.runtime.huggingface import Network

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


def places(counts_BT: Tensor) -> Tensor:
    """int64 [P]: which places count, rows one after the other. Asked once, since a GPU has to be waited for."""
    return counts_BT.flatten().nonzero()[:, 0]


def at(values: Tensor, place_P: Tensor) -> Tensor:
    """[P, ...]: values [B, T, ...] at places."""
    return values.flatten(0, 1).index_select(0, place_P)


def mean_loss(said_PD: Tensor, wanted: Tensor, taught_P: Tensor) -> Tensor:
    """Mean cross-entropy over the places that are taught; 0 where there is none."""
    return (cross_entropy(said_PD, wanted, reduction="none") * taught_P).sum() / taught_P.sum().clamp(min=1)


@torch.no_grad()
def laws(target: Network, state_PX: Tensor, ids_D: Tensor) -> tuple[Tensor, Tensor]:
    """[P, D] the target's laws within a draft vocabulary, and bool [P]: whether its likeliest token is there."""
    logits_PV = target.read_out(state_PX[:, None])[:, 0].float()
    return logits_PV[:, ids_D].softmax(-1), torch.isin(logits_PV.argmax(-1), ids_D)


def begun(wanted_BT: Tensor, step: int) -> Tensor:
    """bool [B, T]: whether what stands at a place in this step began at a place that is wanted."""
    none_BT = torch.zeros_like(wanted_BT[:, :step])
    return torch.cat([none_BT, wanted_BT[:, : wanted_BT.shape[1] - step]], 1)
