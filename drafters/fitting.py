"""A trained head where its target is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import nn

from specdec.runtime.huggingface import Network

Head = TypeVar("Head")

LAYERS = "num_target_layers"  # by DFlash's name for it


def fitted(head: Head, target: Network) -> Head:
    """A head, or a copy of it, on the target's device and in its type, that is not in training."""
    module: Any = cast(nn.Module, head)
    if all((weight.device, weight.dtype) == (target.device, target.dtype) for weight in module.parameters()):
        return cast(Head, module.eval())
    return cast(Head, copy.deepcopy(module).to(target.device, target.dtype).eval())


def same_target(one: Network, other: Network) -> bool:
    """Whether two networks share their weights and are as deep: a twin of a model has modules of its own."""
    return one.head_weight is other.head_weight and one.depth == other.depth


def made_for(settings: Mapping[str, Any]) -> dict[str, int]:
    """What a head's settings say of its target's layers, nothing where they do not."""
    layers = settings.get(LAYERS)
    return {} if layers is None else {LAYERS: int(layers)}


def check_sizes(hidden: int, vocabulary: int | None, target: Network, layers: int | None = None) -> None:
    """Raises ValueError unless a head was made for such a target.

    Args:
        hidden: size of the target's states.
        vocabulary: V, None for one that it borrows.
        target: is checked.
        layers: of the target, None where nobody knows.
    """
    for name, ours, theirs in (
        ("hidden size", hidden, target.head_weight.shape[1]),
        ("vocabulary", vocabulary, target.vocab_size),
        ("number of layers", layers, target.depth),
    ):
        if ours not in (None, theirs):
            raise ValueError(f"the head was made for a target with a {name} of {ours}, but this one has {theirs}")
