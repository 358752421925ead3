"""What drafters with a head over the target's states have in common. X hidden size of the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from drafters.shape import Shape
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel
from specdec.runtime.huggingface import Network
from specdec.runtime.loading import pick_device
from specdec.sequences import Sequences
from specdec.types import Advice, Context, Draft, Tap, Want


class StateHead(Protocol):
    """A module over the target's states, whatever it does with them."""

    @property
    def depth(self) -> int:
        """Its layers."""
        ...

    @property
    def width(self) -> int:
        """X."""
        ...

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The states that it reads of a target with so many layers. Raises ValueError where it has too few."""
        ...

    def check(self, target: Network) -> None:
        """Raises ValueError unless it was made for such a target."""
        ...

    def feature(self, states: Mapping[Tap, Tensor], target: Network) -> Tensor:
        """The target's states [..., hidden] as one feature [..., X]."""
        ...


class StateModel(CachedModel):
    """A head with a cache, that can be told what the target has read."""

    def serves(self, target: Network) -> bool:
        """Whether it borrows of a target with these very weights."""
        raise NotImplementedError

    def see(self, advice: Advice | None) -> None:
        """Take the target's states of newly committed tokens."""
        raise NotImplementedError


HeadT = TypeVar("HeadT", bound=StateHead)
ModelT = TypeVar("ModelT", bound=StateModel)


class StateDrafter(Generic[HeadT, ModelT]):
    """Drafts with a head over states of the target, and what the head borrows of it.

    Args:
        head: its weights; they are copied where the target is on another device or of another type.
        shape: of the drafts.
        device: where to draft ahead of the target, with copies of what the head borrows; None is the target's.
    """

    static = True
    borrows = True

    def __init__(self, head: HeadT, shape: Shape, device: str | torch.device | None = None) -> None:
        self.head, self.shape = head, shape
        self.device = None if device is None else pick_device(device)
        self.model: ModelT | None = None
        self._taps: tuple[Tap, ...] = ()

    def made(self, target: Network) -> ModelT:
        """The head's model, for a target that it fits."""
        raise NotImplementedError

    @property
    def wants(self) -> tuple[Want, ...]:
        """States of the target, known once decoding begins."""
        return self._taps

    @property
    def identity(self) -> object:
        """What a recording may take it for: of another shape, it drafts something else."""
        return self, self.shape

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return self.shape.fanout

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the last generation. Raises ValueError where the head does not fit the target."""
        if target.model is None:
            raise ValueError(
                "the target's embedding and head are out of this drafter's reach: keep it in the target's process"
            )
        if self.device not in (None, target.device):
            raise ValueError(
                f"the head is to draft on {self.device}, but in turns with a target on {target.device}: leave "
                "device=null, or choose a forecast"
            )
        network = target.model.network.outlet(target.device)
        if self.model is None or not self.model.serves(network):
            self.head.check(network)
            self._taps, self.model = self.head.taps(network.depth), self.made(network)
        self.shape.prepare(network.vocab_size, network.device)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        self._model.see(context.advice)
        return self.shape.draft(self._model, context, noise, self._model.vocab_size)

    @property
    def _model(self) -> ModelT:
        if self.model is None:
            raise RuntimeError("draft comes after begin")
        return self.model
