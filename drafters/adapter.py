"""The target's first layers and a trained adapter as drafter (Kangaroo, arXiv 2404.18911).

B rows, S token slots, W tokens of one forward, K tapped tokens, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from drafters.adapter_head import AdapterHead
from drafters.confidence import Confidence
from drafters.early_exit import EarlyExitDrafter
from drafters.fitting import fitted, same_target
from drafters.static_tree import StaticTree
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel
from specdec.runtime.attention import Window
from specdec.runtime.huggingface import Network
from specdec.runtime.memory import Memory
from specdec.runtime.readout import Glance
from specdec.runtime.trunk import Trunk
from specdec.sequences import Sequences
from specdec.types import Advice, Context, Draft, Tap, Want


class AdapterDrafter(EarlyExitDrafter):
    """Drafts with the target's first layers, an adapter with an attention of its own, and the target's LM head.

    Layers, keys and values are the target's own. Of committed tokens the adapter's keys and values come from the
    target's states behind the exit; of drafted ones they are made on the way.

    Args:
        weights: a directory with a configuration and safetensors, or an adapter; it is copied where the target is
            on another device or of another type.
        exit_layer: how many layers of the target run; None is what the adapter was trained behind.
        length, width, nodes, tree, confidence: see ``EarlyExitDrafter``. Kangaroo's stop is ``confidence``, except
            that the token at which it stops stays in the draft, as one that was drawn must.

    Raises:
        ValueError: weights that are not those of an adapter, a length, width or nodes below 1, or (when decoding
            begins) an adapter for another target, or no such layer.
    """

    def __init__(
        self,
        weights: str | Path | AdapterHead,
        exit_layer: int | None = None,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        head = weights if isinstance(weights, AdapterHead) else AdapterHead.load(weights, exit_layer)
        super().__init__(
            head.exit_layer if exit_layer is None else exit_layer, length, width, nodes, tree, confidence
        )
        self.head = head
        self._fitted: tuple[Network, AdapterHead] | None = None

    @property
    def wants(self) -> tuple[Want, ...]:
        """The target's states behind the exit."""
        return (Tap(cast(int, self.exit_layer)),)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Take a view of the target's first layers. Raises ValueError where target and adapter do not fit."""
        super().begin(target, seq)
        view = cast(CachedModel, self.model)
        whole = target.model.network
        if self._fitted is None or not same_target(self._fitted[0], whole):
            self.head.check(whole)
            self._fitted = whole, fitted(self.head, whole)
        network = AdapterNetwork(view.network, self._fitted[1], whole)
        self.model = AdapterModel(network, view.memory if view.is_view else None)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        cast(AdapterModel, self._view).see(context.advice)
        return super().draft(context, noise)


class AdapterNetwork:
    """A target's first layers, the adapter and the target's LM head, as a cached model sees them.

    The adapter's keys and values lie beside those of the target's layers, as if they were of one behind them all.

    Attributes:
        slot: the number of that layer in the cache.
    """

    def __init__(self, exit: Network, head: AdapterHead, target: Network) -> None:
        self._trunk, self._head, self._target = Trunk(exit), head, target
        self.slot, self._tap = target.depth, Tap(exit.depth)
        head.layer.self_attn.layer_idx = self.slot
        self.depth, self.brief, self.max_positions = exit.depth + 1, exit.brief, exit.max_positions
        self.vocab_size, self.device = target.vocab_size, exit.device

    @property
    def module(self) -> nn.Module:
        """The adapter."""
        return self._head

    def __call__(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        window: Window,
        keep: int,
        taps: tuple[Tap, ...] = (),
        glance: Glance | None = None,
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """Logits [B, M, V] of the last ``keep`` tokens; there are no taps."""
        states_BWX = self._trunk(tokens_BW, positions_BW, window)
        own_BWX = self._head.adapt(states_BWX, positions_BW, window=window)
        return self._target.head(own_BWX[:, -keep:]), {}

    def project(self, states: Mapping[Tap, Tensor], positions_BK: Tensor) -> tuple[Tensor, Tensor]:
        """The adapter's keys and values of the target's states."""
        return self._head.project(states[self._tap], positions_BK)


class AdapterModel(CachedModel):
    """First layers and adapter with a cache, the target's or one of their own."""

    def __init__(self, network: AdapterNetwork, memory: Memory | None) -> None:
        super().__init__(cast(Network, network), memory)
        self._adapter = network

    def see(self, advice: Advice | None) -> None:
        """Take the target's states of newly committed tokens, which it has read itself."""
        if advice is None:
            return
        cache = self.memory.cache
        place_BK = torch.where(advice.positions >= 0, advice.positions, cache.trash)
        cache.write(self._adapter.slot, *self._adapter.project(advice.states, place_BK), place_BK, None)
