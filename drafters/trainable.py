"""What a draft head has so that it can be trained (``specdec-train``), and what it sees of the target meanwhile.

B rows, S token slots, X hidden size, V target vocabulary, ``...`` any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from drafters.fitting import LAYERS
from specdec.runtime.huggingface import Network
from specdec.types import Tap

SIZES = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("rms_norm_eps", "rope_parameters", "max_position_embeddings"),
)


class FrozenTarget(Network):
    """A target as a head in training sees it: gradients go through its ends, and leave it as it is.

    It computes in its own type whatever the head computes in, takes states of any type and gives float32.

    Args:
        network: the target.
        counts_V: int64 [V], how often each token occurs in what is learnt from; None where nobody has counted.
    """

    def __init__(self, network: Network, counts_V: Tensor | None = None) -> None:
        self.__dict__.update(network.__dict__)
        self.lean = None  # fused kernels know no gradient
        self._counts = counts_V

    @property
    def sizes(self) -> dict[str, Any]:
        """Of a layer like the target's own, as ``layer_config`` takes them."""
        known = {name: getattr(self.config, name, None) for name in SIZES}
        found = {name: value for name, value in known.items() if value is not None}
        return {**found, "vocab_size": self.vocab_size, "num_hidden_layers": 1, LAYERS: self.depth}

    def frequent(self, most: int | None, among: Tensor | None = None) -> Tensor:
        """int64 [D]: the most frequent tokens, by their ids; of those that never occur the first ones.

        Args:
            most: how many; None, or more than there are, takes all.
            among: int64, ids that may be taken, in order; None is all.

        Raises:
            ValueError: none at all.
        """
        if most is not None and most < 1:
            raise ValueError(f"a draft vocabulary has at least 1 token, not {most}")
        known = torch.arange(self.vocab_size) if among is None else among.cpu()
        counts = torch.zeros_like(known) if self._counts is None else self._counts[known]
        return known[counts.sort(descending=True, stable=True).indices[:most].sort().values]

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings [..., X] of token ids, as the target's table has them."""
        return super().embed(tokens).float()

    def norm(self, state: Tensor) -> Tensor:
        """States [..., X] as the head reads them, from states behind the last layer."""
        return self._each(super().norm, state)

    def head(self, state: Tensor) -> Tensor:
        """Logits [..., V] of the target's own head on states that ``norm`` gave."""
        return self._each(super().head, state)

    def read_out(self, state: Tensor) -> Tensor:
        """Logits [..., V] of the target's norm and head on states from behind any layer."""
        return self._each(super().read_out, state)

    def _each(self, part: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
        # Every place is a row of its own: no mask of places by places is made.
        state_P1X = state.to(self.dtype).reshape(-1, 1, state.shape[-1])
        with torch.autocast(state.device.type, enabled=False):
            found_P1X = part(state_P1X).float()
        return found_P1X.view(*state.shape[:-1], found_P1X.shape[-1])


@runtime_checkable
class Trainable(Protocol):
    """A draft head in training: an ``nn.Module`` with these methods.

    It is made for a target by a call with ``target=`` a ``FrozenTarget``, which gives the sizes. Its weights are
    in float32, and nothing that stays as it is in the target is among them. One that reads more of the target than
    the state behind its last layer also has ``taps(depth)``: which states of a target of so many layers it reads.
    """

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """Named scalars, weighted already; their sum is minimised. 0 where no place counts.

        Args:
            states: of every tap, and of ``Tap(target.depth)``: float32 [B, S, X], the target's at token s. Where a
                row has ended they are 0.
            tokens_BS: int64, the rows: prompt and reply, padded at the end.
            wanted_BS: bool, the places where the target's law decided a token of its reply, that at s + 1. What
                is said at s about the token at s + 1 + k counts where s + k is wanted; the law behind it is
                that of ``target.read_out`` on the last layer's state at s + k.
            target: a ``FrozenTarget``.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the head into a directory that is there and empty, in a public layout."""
        ...


def checked(head: object) -> Trainable:
    """The head. Raises ValueError where something is missing."""
    if isinstance(head, nn.Module) and isinstance(head, Trainable):
        return head
    raise ValueError(f"{type(head).__name__} is no nn.Module with losses and save: see drafters.trainable")


def taps_of(head: nn.Module, target: Network) -> tuple[Tap, ...]:
    """The states that a head reads, and the last layer's. Raises ValueError where there is no such layer."""
    taps: Callable[[int], tuple[Tap, ...]] = getattr(head, "taps", lambda depth: ())
    wanted = taps(target.depth)
    wrong = [tap.layer for tap in wanted if not 0 <= tap.layer <= target.depth]
    if wrong:
        raise ValueError(
            f"{type(head).__name__} reads behind layer {wrong[0]}, but the target has {target.depth} layers"
        )
    return tuple(dict.fromkeys((*wanted, Tap(target.depth))))
