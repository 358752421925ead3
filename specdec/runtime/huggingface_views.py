"""Views of a Hugging Face model that share every weight, with other parts in the place of its own.

B rows, W tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from specdec.runtime.readout import Stand

if TYPE_CHECKING:
    from specdec.runtime.huggingface import Network


def with_layers(module: nn.Module, name: str, layers: list[nn.Module]) -> Any:
    """A view of a module that shares every weight, with other layers in its list of that name."""
    return with_part(module, name, nn.ModuleList(layers))


def without_head(module: PreTrainedModel) -> Any:
    """A view of a causal language model whose logits are the states that its head would read.

    Raises:
        ValueError: it has no head.
    """
    head = module.get_output_embeddings()
    for name, child in module.named_modules():
        if child is head:
            return with_part(module, name, nn.Identity())
    raise ValueError(f"{type(module).__name__} has no head that could be left out")


def without_decoder(module: PreTrainedModel, state: Tensor) -> Any:
    """A view of a model that takes a state [B, W, hidden] for what its decoder gives, final norm included."""
    decoder = module.get_decoder()
    name = next(name for name, child in module.named_modules() if child is decoder)
    return unheard(with_part(module, name, Given(decoder, state)))


def unheard(module: nn.Module) -> Any:
    """A view without its hooks: who watches the model's steps does not mean this one."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        hooks.clear()
    return module


def run(module: nn.Module, state: Tensor) -> Any:
    """What a view gives in which a state [B, W, hidden] is there already: its tokens do not matter."""
    tokens_BW = torch.zeros(state.shape[:2], dtype=torch.int64, device=state.device)
    return module(input_ids=tokens_BW, use_cache=False)


class Given(Stand):
    """In place of a decoder: gives a state, [B, W, hidden], whatever comes in."""

    def __init__(self, decoder: nn.Module, state: Tensor) -> None:
        super().__init__(decoder, state, tuples=False)

    def forward(self, *_: Any, **__: Any) -> StateAlone:
        """The state."""
        return StateAlone(last_hidden_state=super().forward())


@dataclass
class StateAlone(BaseModelOutputWithPast):
    """Answer of a decoder that has nothing but a state: what some models' decoders say besides is None."""

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def attending(configs: Iterable[Any], implementation: str) -> Iterator[None]:
    """Models of these configurations attend in another way, for the length of a call."""
    before = [(config, config._attn_implementation_internal) for config in configs]
    for config, _ in before:
        config._attn_implementation_internal = implementation
    try:
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def with_part(module: nn.Module, name: str, part: nn.Module) -> Any:
    """A view of a module that shares every weight, with another part under that name."""
    *parents, last = name.split(".")
    view = outer = shallow(module)
    for parent in parents:
        inner = shallow(getattr(outer, parent))
        setattr(outer, parent, inner)
        outer = inner
    setattr(outer, last, part)
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


def view(network: Network, module: Any, layers: int) -> Network:
    """A network of a module that has only the first ``layers`` of its layers."""
    seen = copy.copy(network)
    seen.module, seen._layers, seen._outlets = module, network._layers[:layers], {}
    seen.lean = network.lean and replace(network.lean, layers=network.lean.layers[:layers])
    return seen
