"""What the parts of a round cost by themselves: steps of the target by width, chains of the drafter by length.

B = 1 row, S token slots, N draft nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drafters.rollout import OneToken, chain
from drafters.roots import Roots
from experiments.stopwatch import middle, recorded
from specdec import Sampling
from specdec.decode import capacity
from specdec.noise import Still
from specdec.runtime import CachedModel
from specdec.types import Context, Draft

Numbers = dict[int, float]


@dataclass(frozen=True)
class Curve:
    """Time of one part at one context.

    Attributes:
        context: committed tokens.
        weight_bytes: weights of all linear layers, the head included, that one step reads.
        context_bytes: keys and values of the context.
        floor_ms: milliseconds in which the device copies as many bytes as a single step reads.
        milliseconds: by width (target) or by length (drafter).
    """

    context: int
    weight_bytes: int
    context_bytes: int
    floor_ms: float
    milliseconds: Numbers

    def at(self, size: float) -> float:
        """Milliseconds at a width or length, on the straight line between its neighbours."""
        known = sorted(self.milliseconds)
        right = next((value for value in known if value >= size), known[-1])
        left = next((value for value in reversed(known) if value <= size), known[0])
        low, high = self.milliseconds[left], self.milliseconds[right]
        share = 0.0 if left == right else (size - left) / (right - left)
        return low + (high - low) * share


def curve(
    model: CachedModel, context: int, sizes: Sequence[int], rate: float, count: int, part: Callable[..., Any]
) -> Curve:
    """Time a part at several sizes.

    Args:
        model: whose.
        context: committed tokens.
        sizes: widths, or lengths.
        rate: bytes per second that the device copies.
        count: calls to time.
        part: called with the model, the rows and a size, returns what is to be timed.
    """
    with torch.inference_mode():
        tokens_BS, lengths_B = filled(model, context, max(sizes))
        milliseconds = {}
        for size in sizes:
            call = recorded(model.device, part(model, tokens_BS, lengths_B, size))
            milliseconds[size] = 1e3 * middle(model.device, call, count)
        weights, held = linear_bytes(model.network.module), context * slot_bytes(model)
        model.begin(1, 1)  # whoever comes next finds no cache that is larger than it needs
    return Curve(context, weights, held, 1e3 * (weights + held) / rate, milliseconds)


def filled(model: CachedModel, context: int, more: int) -> tuple[Tensor, Tensor]:
    """A row of so many tokens that the model has read: tokens [1, S] and lengths [1]."""
    slots = capacity(context + more)
    limit = model.network.max_positions
    if limit is not None and context + more > limit:
        raise ValueError(f"a context of {context} and {more} more do not fit the model's {limit} positions")
    model.begin(1, 1)
    model.begin(1, slots, context + more, stay=True)
    tokens_BS = torch.zeros(1, slots, dtype=torch.int64, device=model.device)
    tokens_BS[0, :context] = torch.tensor(text(model.vocab_size, context))
    lengths_B = torch.full((1,), context, device=model.device)
    model.advance(tokens_BS, lengths_B)
    return tokens_BS, lengths_B


def step(model: CachedModel, tokens_BS: Tensor, lengths_B: Tensor, width: int) -> Callable[[], Any]:
    """A verification of ``width`` tokens: the last committed one and a chain behind it."""
    index_N = torch.arange(width - 1, device=model.device)
    nodes = ((index_N * 613 % model.vocab_size)[None], (index_N - 1)[None])
    return lambda: model.advance(tokens_BS, lengths_B, nodes, behind=1, chain=True)


def rollout(model: CachedModel, tokens_BS: Tensor, lengths_B: Tensor, length: int) -> Callable[[], Any]:
    """A greedy draft of ``length`` tokens."""
    context = Context(tokens_BS, lengths_B, torch.full_like(lengths_B, length + 1), Sampling(), static=True)
    noise = Still()

    def draft() -> Draft:
        roots = Roots.committed(model, context, model.vocab_size, behind=2, chain=True)
        return chain(model, roots, noise, length, model.vocab_size, OneToken())

    return draft


def text(vocabulary: int, length: int, start: int = 0) -> list[int]:
    """Token ids of a prompt, another for every start."""
    return [(7001 * start + 977 * index) % vocabulary for index in range(length)]


def linear_bytes(module: nn.Module) -> int:
    """Bytes of the weights that a step multiplies by, each counted once per layer that uses it."""
    layers = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)


def parameter_bytes(model: CachedModel) -> int:
    """Bytes of all weights, shared ones counted once."""
    return sum(weight.numel() * weight.element_size() for weight in model.network.module.parameters())


def cache_bytes(model: CachedModel) -> int:
    """Bytes of the keys and values of all slots, used or not."""
    cache = model.memory.cache
    buffers = [*cache.keys.values(), *cache.values.values()]
    return sum(buffer.numel() * buffer.element_size() for buffer in buffers)


def slot_bytes(model: CachedModel) -> int:
    """Bytes of the keys and values of one token, of a cache that has been written."""
    cache = model.memory.cache
    buffers = [*cache.keys.values(), *cache.values.values()]
    return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in buffers)
