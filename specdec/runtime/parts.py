"""What a draft head borrows of its target: the embedding, the final norm and the head. B rows, W tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_views import layer_list, with_layers
from specdec.runtime.readout import Stand

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Parts:
    """A target's embedding, final norm and head; its own modules, none of them copied.

    Attributes:
        embedding: token ids [B, W] to [B, W, hidden], scaled where the model scales it.
        norm: the state behind the last layer [B, W, hidden] to what the head reads.
        head: that to logits [B, W, V], before any scale or cap that the model puts on them.
        depth: layers of the target.
    """

    embedding: nn.Module
    norm: nn.Module
    head: nn.Module
    depth: int

    @classmethod
    def of(cls, network: Network) -> Parts:
        """Of a causal language model. Raises ValueError where it has no head, or no norm of its own before it."""
        head = network.module.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise ValueError(f"{type(network.module).__name__} has no head that a drafter could borrow")
        return cls(network.module.get_input_embeddings(), final_norm(network), head, network.depth)

    @property
    def hidden(self) -> int:
        """Size of a state."""
        weight: Any = self.head.weight
        return int(weight.shape[1])

    @property
    def vocab_size(self) -> int:
        """V."""
        weight: Any = self.head.weight
        return int(weight.shape[0])

    @property
    def weight(self) -> Tensor:
        """[V, hidden], the head's, whose device and type a borrower takes."""
        weight: Any = self.head.weight
        return weight

    def fitted(self, module: M) -> M:
        """A borrower on the device and in the type of these weights; itself where it is."""
        like = self.weight
        if any((own.device, own.dtype) != (like.device, like.dtype) for own in module.parameters()):
            module = copy.deepcopy(module).to(like.device, like.dtype)
        return module.eval()

    def same(self, other: Parts) -> bool:
        """Whether they share their weights: a twin of a model has modules of its own."""
        ours: Any = self.embedding.weight
        theirs: Any = other.embedding.weight
        return self.weight is other.weight and ours is theirs


@torch.no_grad()
def final_norm(network: Network) -> nn.Module:
    """The module that a model runs on the state behind its last layer, found by watching it. Raises ValueError."""
    name, stack = layer_list(network.module, network.depth)
    weight: Any = network.module.get_input_embeddings().weight
    state_11X = weight.new_zeros(1, 1, network.config.hidden_size)
    stand = Stand(stack[-1], state_11X, network.tuples)
    decoder = with_layers(network.module, name, [stand]).get_decoder()
    token_11 = torch.zeros(1, 1, dtype=torch.int64, device=weight.device)
    found: list[tuple[nn.Module, Any]] = []
    watched = [module for module in decoder.modules() if module is not decoder and not isinstance(module, Stand)]
    hooks = [module.register_forward_hook(lambda *call: found.append((call[0], call[2]))) for module in watched]
    try:
        last = decoder(input_ids=token_11, use_cache=False).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(found):
        if isinstance(output, Tensor) and output.data_ptr() == last.data_ptr():  # it may have been viewed since
            return module
    raise ValueError(f"{type(network.module).__name__} has no final norm that a drafter could borrow")
