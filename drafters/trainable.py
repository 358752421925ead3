"""What a draft head has so that it can be trained (``specdec-train``), and what it sees of the target meanwhile.

B rows, S token slots, X hidden size, V target vocabulary, ``...`` any shape.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from specdec.runtime.huggingface import Network
from specdec.types import Tap


@dataclass(frozen=True)
class FrozenTarget:
    """The target as a head in training sees it: gradients go through it, and leave it as it is.

    Attributes:
        network: the target.
    """

    network: Network

    @property
    def depth(self) -> int:
        """Number of layers: ``Tap(depth)`` is the state behind the last one."""
        return self.network.depth

    @property
    def hidden(self) -> int:
        """X, size of a state."""
        return int(self.network.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, width of the logits."""
        return self.network.vocab_size

    def read_out(self, state: Tensor) -> Tensor:
        """Logits [..., V] of the target's norm and head on states [..., X] before the norm, in its type."""
        # Every place is a row of its own: no mask of places by places is made.
        state_PWX = state.to(self.network.dtype).reshape(-1, 1, state.shape[-1])
        with torch.autocast(state.device.type, enabled=False):
            return self._plain.read_out(state_PWX).view(*state.shape[:-1], -1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., X] of token ids, as the target's table has them."""
        found: Tensor = self.network.module.get_input_embeddings()(tokens)
        return found

    @cached_property
    def _plain(self) -> Network:
        """The network without fused kernels, which know no gradient."""
        plain = copy.copy(self.network)
        plain.lean = None
        return plain


@runtime_checkable
class Trainable(Protocol):
    """A draft head in training: an ``nn.Module`` with these methods.

    It is made for a target by a call with ``target=`` a ``FrozenTarget``, which gives the sizes. Its weights are
    in float32, and nothing that stays as it is in the target is among them.
    """

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """Which states of a target of so many layers it reads. The one behind the last layer comes by itself."""
        ...

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: FrozenTarget
    ) -> dict[str, Tensor]:
        """Named scalars, weighted already; their sum is minimised. 0 where no place counts.

        Args:
            states: of every tap, and of ``Tap(target.depth)``: float32 [B, S, X], the target's at token s. Where a
                row has ended they are 0.
            tokens_BS: int64, the rows: prompt and reply, padded at the end.
            wanted_BS: bool, the places where the target's law decided a token of its reply, that at s + 1. What
                is said at s about the token at s + 1 + k counts where both s and s + k are wanted; the law behind
                it is that of ``target.read_out`` on the last layer's state at s + k.
            target: the model to be drafted for.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write the head into a directory that is there and empty, as safetensors in a public layout."""
        ...


def checked(head: object) -> Trainable:
    """The head. Raises ValueError where something is missing."""
    if isinstance(head, nn.Module) and isinstance(head, Trainable):
        return head
    raise ValueError(f"{type(head).__name__} is no nn.Module with taps, losses and save: see drafters.trainable")
