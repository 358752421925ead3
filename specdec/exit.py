"""The target's early exit: what it would say if it ended after a part of its layers.

B rows, N draft nodes, M = N + 1 (the last committed token, then the nodes), W tokens of one forward, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from specdec.hypotheses import Candidates
from specdec.runtime import CachedModel
from specdec.runtime.readout import Glance
from specdec.sampling import Sampling
from specdec.translator import depth_of, load_translator
from specdec.types import Draft

if TYPE_CHECKING:
    from specdec.runtime.huggingface import Network

Hint = Callable[["Glimpse"], None]


@dataclass(frozen=True)
class Exit:
    """The likeliest next tokens by the target's own norm and head on the state behind a layer.

    The token channel of Mirror Speculative Decoding (arXiv 2510.13161): ids and log-probabilities of the top
    tokens at every position of the window leave while the layers behind still run.

    Attributes:
        layer: how many layers to run; None is half of them.
        top: K, tokens per position.
        translator: maps states [..., hidden] from there to what the last layer would say; None is the identity.
        trained: in its place, the name of a target that trained exits are shipped for, or a file of them; see
            ``specdec.translator``.

    Raises:
        ValueError: a layer or ``top`` that is no whole number, ``top`` below 1, or a trained exit without its
            layer or beside a translator.
    """

    layer: int | None = None
    top: int = 8
    translator: Callable[[Tensor], Tensor] | None = None
    trained: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, int | None) or not isinstance(self.top, int):
            raise ValueError(f"layer and top must be whole numbers, not {self.layer} and {self.top}")
        if self.top < 1:
            raise ValueError(f"an early exit must name at least 1 token per position, not {self.top}")
        if self.trained is not None and (self.layer is None or self.translator is not None):
            raise ValueError("a trained exit is named by its file and its layer, and has no other translator")

    @cached_property
    def map(self) -> Callable[[Tensor], Tensor] | None:
        """The translator, read when it is first asked for. Raises ValueError where there is none."""
        if self.trained is None or self.layer is None:
            return self.translator
        return load_translator(self.trained, self.layer)

    @cached_property
    def trained_depth(self) -> int | None:
        """Layers of the target that the trained exit is for; read once, since every forward asks."""
        return None if self.trained is None else depth_of(self.trained)

    def of(self, model: CachedModel) -> int:
        """The layer in a model.

        Raises:
            ValueError: it has no such layer, or fewer tokens than ``top``; there is no such trained exit, or it is
                for a target of another depth.
        """
        self.map  # noqa: B018 - what is missing is said before the first token
        depth = model.network.depth
        layer = depth // 2 if self.layer is None else self.layer
        if not 0 < layer < depth:
            raise ValueError(f"the early exit must be after layer 1 to {depth - 1} of this target, not {layer}")
        if self.top > model.vocab_size:
            raise ValueError(f"the target has {model.vocab_size} tokens: an early exit cannot name {self.top}")
        if self.trained_depth not in (None, depth):
            raise ValueError(
                f"the exits of {self.trained} were trained for a target of {self.trained_depth} layers, but this "
                f"one has {depth}: name others, or take the raw exit (trained=null)"
            )
        return layer

    def glance(self, model: CachedModel, draft: Draft, sampling: Sampling, hint: Hint) -> Glance:
        """What is to be done with the state as soon as it is there: let the hint see it."""

        def take(state_BWX: Tensor) -> None:
            hint(Glimpse(self, model.network, state_BWX[:, -(draft.size + 1) :], draft, sampling))

        return Glance(self.of(model), take)

    def read(self, network: Network, state_BMX: Tensor, draft: Draft, sampling: Sampling) -> Candidates:
        """The top tokens by a network's norm and head on states [B, M, hidden] from behind the layer."""
        if self.map is not None:
            state_BMX = self.map(state_BMX)
        return Candidates.top(sampling.soft(network.read_out(state_BMX)), draft, self.top)


@dataclass(frozen=True)
class Glimpse:
    """What there is to see of a forward while the layers behind the exit still run.

    Attributes:
        exit: which.
        network: the target.
        state: [B, M, hidden].
        draft: the window.
        sampling: the law to decode under.
    """

    exit: Exit
    network: Network
    state: Tensor
    draft: Draft
    sampling: Sampling

    def read(self) -> Candidates:
        """Read it out where the target is."""
        return self.exit.read(self.network, self.state, self.draft, self.sampling)
