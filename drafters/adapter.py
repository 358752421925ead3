"""The target's first layers and a trained adapter as drafter (Kangaroo, arXiv 2404.18911).

B rows, S token slots, W tokens of one forward, K tapped tokens, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from drafters.adapter_head import AdapterHead
from drafters.early_exit import EarlyExitDrafter
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel
from specdec.runtime.attention import Window
from specdec.runtime.huggingface import Network
from specdec.runtime.memory import Memory
from specdec.runtime.parts import Parts
from specdec.runtime.readout import Glance
from specdec.runtime.trunk import Trunk
from specdec.sequences import Sequences
from specdec.types import Advice, Context, Draft, Tap


class AdapterDrafter(EarlyExitDrafter):
    """Drafts with the target's first layers, an adapter with an attention of its own, and the target's LM head.

    Layers, keys and values are the target's own. Of committed tokens the adapter's keys and values come from the
    target's states behind the exit; of drafted ones they are made on the way.

    Args:
        weights: a directory with a configuration and safetensors, or an adapter; it is copied where the target is
            on another device or of another type.
        exit_layer: how many layers of the target run; None is what the adapter was trained behind.
        length: tokens of the chain, or levels of the tree. Kangaroo's stop at an unlikely token is not there: a
            token that was drawn must stay in the draft.
        width, nodes: see ``EarlyExitDrafter``.

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
    ) -> None:
        head = weights if isinstance(weights, AdapterHead) else AdapterHead.load(weights, exit_layer)
        super().__init__(head.exit_layer if exit_layer is None else exit_layer, length, width, nodes)
        self.head = head
        self._fitted: tuple[Parts, AdapterHead] | None = None

    @classmethod
    def fresh(cls, target: Network, exit_layer: int | None = None, **shape: Any) -> AdapterDrafter:
        """With an adapter that is to be trained; see ``AdapterHead.fresh``. ``shape``: length, width and nodes."""
        layer = target.depth // 2 if exit_layer is None else exit_layer
        return cls(AdapterHead.fresh(target, layer), layer, **shape)

    @property
    def wants(self) -> tuple[Tap, ...]:  # type: ignore[override]
        """The target's states behind the exit."""
        return (Tap(cast(int, self.exit_layer)),)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Take a view of the target's first layers. Raises ValueError where target and adapter do not fit."""
        super().begin(target, seq)
        view = cast(CachedModel, self.model)
        parts = Parts.of(target.model.network)
        if self._fitted is None or not self._fitted[0].same(parts):
            self.head.check(parts)
            self._fitted = parts, parts.fitted(self.head)
        network = AdapterNetwork(view.network, self._fitted[1], parts)
        self.model = AdapterModel(network, view.memory if view.is_view else None)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        cast(AdapterModel, self._view).see(context.advice)
        return super().draft(context, noise)

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """What training makes small: ``soft``, the cross-entropy between the target's law and the adapter's.

        Args:
            states: of whole texts [B, S, X], behind the exit and behind the last layer.
            tokens_BS: the texts.
            wanted_BS: bool, after which of their tokens the laws count.
            target: the network that they are from.

        Raises:
            ValueError: a state is missing.
        """
        last = Tap(target.depth)
        if not {*self.wants, last} <= states.keys():
            raise ValueError(f"an adapter is trained on states at {self.wants[0]} and {last}, not {tuple(states)}")
        head: Any = target.module.get_output_embeddings()
        place_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
        own_BSX = self.head.adapt(states[self.wants[0]], place_BS)
        with torch.no_grad():
            law_BSV = target.read_out(states[last]).float().softmax(-1)
        # The adapter may be trained in a wider type than the target's weights are.
        loss_BS = -(law_BSV * head(own_BSX.to(head.weight.dtype)).float().log_softmax(-1)).sum(-1)
        return {"soft": loss_BS[wanted_BS].mean()}


class AdapterNetwork:
    """A target's first layers, the adapter and the target's LM head, as a cached model sees them.

    The adapter's keys and values lie beside those of the target's layers, as if they were of one behind them all.

    Attributes:
        slot: the number of that layer in the cache.
    """

    def __init__(self, exit: Network, head: AdapterHead, parts: Parts) -> None:
        self._trunk, self._head, self._parts = Trunk(exit), head, parts
        self.slot, self._tap = parts.depth, Tap(exit.depth)
        head.layer.self_attn.layer_idx = self.slot
        self.depth, self.brief, self.max_positions = exit.depth + 1, exit.brief, exit.max_positions
        self.vocab_size, self.device = parts.vocab_size, exit.device

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
        return self._parts.head(own_BWX[:, -keep:]), {}

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
