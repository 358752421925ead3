"""Views of a Hugging Face model that share every weight, with other layers in the place of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def with_layers(module: nn.Module, name: str, layers: list[nn.Module]) -> Any:
    """A view of a module that shares every weight, with other layers in its list of that name."""
    return with_child(module, name, nn.ModuleList(layers))


def without_head(module: PreTrainedModel) -> Any:
    """A view of a causal language model whose logits are the states that its head would read.

    Raises:
        ValueError: it has no head.
    """
    head = module.get_output_embeddings()
    for name, child in module.named_modules():
        if child is head:
            return with_child(module, name, nn.Identity())
    raise ValueError(f"{type(module).__name__} has no head that could be left out")


def with_child(module: nn.Module, name: str, child: nn.Module) -> Any:
    """A view of a module that shares every weight, with another module of that name in it."""
    *parents, last = name.split(".")
    view = outer = shallow(module)
    for parent in parents:
        inner = shallow(getattr(outer, parent))
        setattr(outer, parent, inner)
        outer = inner
    setattr(outer, last, child)
    return view


def shallow(module: nn.Module) -> Any:
    """A copy of a module that shares its weights and children, but not the tables it keeps them in."""
    view = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):
            view.__dict__[name] = copy.copy(value)
    return view


def layer_list(module: PreTrainedModel, depth: int) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers.

    Raises:
        ValueError: no module list has as many entries as the model has layers.
    """
    decoder = set(module.get_decoder().modules())  # a vision tower may have as many layers
    for name, child in module.named_modules():
        if child in decoder and isinstance(child, nn.ModuleList) and len(child) == depth:
            return name, child
    raise ValueError(f"{type(module).__name__} has no list of {depth} decoder layers")
