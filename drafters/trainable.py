"""What a draft head has so that it can be trained (``specdec-train``), and what it sees of the target meanwhile.

B rows, S token slots, X hidden size, V target vocabulary, ``...`` any shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from drafters.lender import Lender
from specdec.runtime.huggingface import Network
from specdec.types import Tap

SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rms_norm_eps", "rope_parameters", "max_position_embeddings"),
)


@dataclass(frozen=True)
class FrozenTarget:
    """The target as a head in training sees it, see ``Lender``: gradients go through it, and leave it as it is.

    Whatever type states come in, it computes in its own.

    Attributes:
        network: the target.
        counts: int64 [V], how often each token occurs in what is learnt from; None where nobody has counted.
    """

    network: Network
    counts: Tensor | None = None

    @property
    def depth(self) -> int:
        """Number of layers: ``Tap(depth)`` is the state behind the last one."""
        return self.network.depth

    @property
    def head_weight(self) -> Tensor:
        """[V, X], the head's."""
        return self.network.head_weight

    @property
    def vocab_size(self) -> int:
        """V, width of the logits."""
        return self.network.vocab_size

    def frequent(self, most: int | None) -> Tensor:
        """int64 [D]: the most frequent tokens, by their ids; of those that never occur the first ones.

        Args:
            most: how many; None, or more than there are, takes all.
        """
        counts_V = torch.zeros(self.vocab_size, dtype=torch.int64) if self.counts is None else self.counts.cpu()
        return counts_V.sort(descending=True, stable=True).indices[:most].sort().values

    @property
    def settings(self) -> dict[str, Any]:
        """Sizes of a layer like the target's own, as ``layer_config`` takes them."""
        config, known = self.network.config, {}
        for name in SIZES:
            if getattr(config, name, None) is not None:
                known[name] = getattr(config, name)
        return {**known, "vocab_size": self.vocab_size, "num_hidden_layers": 1}

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return self.network.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., X] of token ids, as the target's table has them."""
        return self.network.embed(tokens)

    def norm(self, state: Tensor) -> Tensor:
        """States [..., X] as the head reads them, from states [..., X] behind the last layer."""
        return self._of_places(self._plain.norm, state)

    def head(self, state: Tensor) -> Tensor:
        """Logits [..., V] on states [..., X] that ``norm`` gave."""
        return self._of_places(self._plain.head, state)

    def read_out(self, state: Tensor) -> Tensor:
        """Logits [..., V] of the target's norm and head on states [..., X] before the norm."""
        return self._of_places(self._plain.read_out, state)

    def _of_places(self, part: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
        # Every place is a row of its own: no mask of places by places is made.
        state_PWX = state.to(self.dtype).reshape(-1, 1, state.shape[-1])
        with torch.autocast(state.device.type, enabled=False):
            found_PWX = part(state_PWX)
        return found_PWX.view(*state.shape[:-1], found_PWX.shape[-1])

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
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Lender
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
