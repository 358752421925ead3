"""DFlash: a block of tokens filled in one forward over states of the target (arXiv 2602.06036).

B rows, W tokens of a block, K states, S slots that are read, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from drafters.block_drafter import BlockDrafter
from drafters.checkpoint import FILES, fill, read, write
from drafters.confidence import Confidence
from drafters.fitting import LAYERS, check_sizes
from drafters.static_tree import StaticTree
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_blocks import BlockLayer
from specdec.runtime.huggingface_layers import Rotary, layer_config, rms_norm
from specdec.types import Tap


class DFlashDrafter(BlockDrafter):
    """Drafts up to ``block_size - 1`` tokens in one forward; see ``BlockDrafter``.

    Args:
        weights: a directory as published (``DFlashDraftModel``), or a head.
        length, width, nodes: see ``BlockDrafter``.

    Raises:
        ValueError: weights that are not those of such a head, or what ``BlockDrafter`` refuses.
    """

    def __init__(
        self,
        weights: str | Path | DFlashHead,
        length: int | None = None,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        head = weights if isinstance(weights, DFlashHead) else DFlashHead.load(weights)
        super().__init__(head, length, width, nodes, tree, confidence)


class DFlashHead(nn.Module):
    """Weights of a DFlash draft model; embedding and LM head are the target's.

    States of the target are fused, normed, and read by every layer as keys and values in front of the block. The
    block is the last committed token and masks, which all see each other.

    Args:
        settings: the published ``config.json``: sizes of its layers, ``block_size``, and in ``dflash_config``
            ``mask_token_id`` and ``target_layer_ids``. Without the latter they are spread over the
            ``num_target_layers`` of the target, or it is the middle one where the head has one layer.

    Raises:
        ValueError: settings that are missing or make no sense.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        config, chosen = layer_config(settings), settings.get("dflash_config") or {}
        if "sliding_attention" in (settings.get("layer_types") or ()):
            raise ValueError("a DFlash head with sliding_attention is not supported: take one with full attention")
        self.block_size = whole(settings.get("block_size"), "block_size", 2)
        self.mask = whole(chosen.get("mask_token_id"), "dflash_config.mask_token_id", 0)
        layers = chosen.get("target_layer_ids")
        if layers is None:
            names = "num_target_layers or dflash_config.target_layer_ids"
            layers = spread(whole(settings.get("num_target_layers"), names, 1), config.num_hidden_layers)
        self.target_layers: Sequence[int] = tuple(layers)
        self.vocab_size = int(config.vocab_size)
        hidden = config.hidden_size
        self.fc = nn.Linear(len(self.target_layers) * hidden, hidden, bias=False)
        self.hidden_norm, self.norm = rms_norm(config), rms_norm(config)
        self.layers = nn.ModuleList(BlockLayer(config) for _ in range(config.num_hidden_layers))
        self.rotary = Rotary(config)

    @classmethod
    def load(cls, directory: str | Path) -> DFlashHead:
        """A published checkpoint. Raises ValueError where a tensor is missing, left over or of another shape."""
        tensors = read(directory, FILES)
        head = cls(tensors.sizes())
        fill(head, tensors.take)
        tensors.finish()
        return head

    def save(self, directory: str | Path) -> None:
        """Write it as it is published."""
        write(directory, FILES[0], self.state_dict(), {"architectures": ["DFlashDraftModel"], **self.settings})

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.layers)

    @property
    def width(self) -> int:
        """X."""
        return self.fc.out_features

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The states it reads: those behind the layers that its configuration counts from 0."""
        if min(self.target_layers) < 0 or max(self.target_layers) >= depth:
            raise ValueError(
                f"the head reads states behind layers {self.target_layers}, counted from 0, but the target has "
                f"{depth}"
            )
        return tuple(Tap(layer + 1) for layer in self.target_layers)

    def check(self, target: Network) -> None:
        """Raises ValueError unless it was made for such a target."""
        check_sizes(self.width, self.vocab_size, target, self.settings.get(LAYERS))
        if self.mask >= target.vocab_size:
            raise ValueError(
                f"the head's mask token is {self.mask}, but the target has {target.vocab_size} tokens"
            )

    def feature(self, states: Mapping[Tap, Tensor], target: Network) -> Tensor:
        """The target's states [..., hidden], fused and normed, [..., X]."""
        # Hugging Face's last state, by which the layers are counted, is behind the final norm.
        read = [
            target.norm(states[tap]) if tap.layer == target.depth else states[tap]
            for tap in self.taps(target.depth)
        ]
        return self.hidden_norm(self.fc(torch.cat(read, -1).to(self.fc.weight.dtype)))

    def project(self, features_BKX: Tensor, positions_BK: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of features in every layer."""
        angles = self.rotary(features_BKX, positions_BK)
        return [layer.self_attn.project(features_BKX, angles) for layer in self._blocks]

    def fill(
        self,
        last_B1: Tensor,
        positions_B1: Tensor,
        before: list[tuple[Tensor, Tensor]],
        seen_BS: Tensor,
        target: Network,
    ) -> Tensor:
        """[B, W - 1, V]: logits of the masked places behind a token.

        Args:
            last_B1, positions_B1: the token and its position.
            before: keys and values of the features, of every layer.
            seen_BS: bool, which of those there are.
            target: what is borrowed of.
        """
        places_W = torch.arange(self.block_size, device=last_B1.device)
        block_BWX = target.embed(pad(last_B1, (0, self.block_size - 1), value=self.mask)).to(self.fc.weight.dtype)
        angles = self.rotary(block_BWX, positions_B1 + places_W)
        for layer, context in zip(self._blocks, before, strict=True):
            block_BWX = layer(block_BWX, angles, context, seen_BS)
        return target.head(self.norm(block_BWX[:, 1:]))

    @property
    def _blocks(self) -> list[BlockLayer]:
        layers: Any = self.layers
        return list(layers)


def whole(value: Any, name: str, least: int) -> int:
    """A whole number of the settings. Raises ValueError where it is none, or below the least that makes sense."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} of a DFlash head must be a whole number of at least {least}, not {value}")
    return value


def spread(target_layers: int, count: int) -> tuple[int, ...]:
    """Layers of the target, counted from 0: the published choice, from the second to the fourth from last."""
    if count == 1:
        return (target_layers // 2,)
    step = (target_layers - 4) / (count - 1)
    return tuple(round(1 + index * step) for index in range(count))
