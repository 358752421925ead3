"""Weights of an adapter between a target's first layers and its head.

B rows, W tokens of one forward, S tokens of a text, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drafters.checkpoint import FILES, fill, read, write
from drafters.fitting import LAYERS, check_sizes
from drafters.teaching import soft_cross_entropy
from drafters.trainable import FrozenTarget
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import AttentionLayer, Rotary, layer_config, rms_norm
from specdec.types import Tap


class AdapterHead(nn.Module):
    """One layer that only attends, and a norm (Kangaroo, arXiv 2404.18911).

    Args:
        settings: sizes, as in a Llama's ``config.json``, and ``exit_layer``: how many layers of the target run
            before it.

    Raises:
        ValueError: settings that are missing or make no sense.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        layer = settings.get("exit_layer")
        if not isinstance(layer, int) or layer < 1:
            raise ValueError(f"exit_layer of an adapter must be a whole number of at least 1, not {layer}")
        config = layer_config({**settings, "num_hidden_layers": 1})
        self.exit_layer, self.vocab_size = layer, int(config.vocab_size)
        self.layers = nn.ModuleList([AttentionLayer(config)])
        self.norm = rms_norm(config)
        self.rotary = Rotary(config)

    @classmethod
    def load(cls, directory: str | Path, exit_layer: int | None = None) -> AdapterHead:
        """A checkpoint; ``exit_layer`` where its configuration does not say. Raises ValueError."""
        tensors = read(directory, FILES)
        settings = tensors.sizes()
        head = cls(settings if exit_layer is None else {**settings, "exit_layer": exit_layer})
        fill(head, tensors.take)
        tensors.finish()
        return head

    @classmethod
    @torch.no_grad()
    def fresh(cls, target: FrozenTarget, exit_layer: int | None = None) -> AdapterHead:
        """One that changes nothing yet: the target's early exit, with the gain of its final norm.

        Args:
            target: what it is for.
            exit_layer: how many of its layers run; None is half of them.

        Raises:
            ValueError: there is no such layer.
        """
        layer = target.depth // 2 if exit_layer is None else exit_layer
        if not 0 < layer < target.depth:
            raise ValueError(f"exit_layer must be from 1 to {target.depth - 1} for this model, not {layer}")
        head = cls({**target.sizes, "exit_layer": layer})
        head.layer.self_attn.o_proj.weight.zero_()
        head.norm.load_state_dict({"weight": gain_of(target)})
        return head

    def save(self, directory: str | Path) -> None:
        """Write it, to be loaded again."""
        write(directory, FILES[0], self.state_dict(), self.settings)

    @property
    def layer(self) -> AttentionLayer:
        """Its layer."""
        only: Any = self.layers[0]
        return only

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The state behind the exit's layer."""
        return (Tap(self.exit_layer),)

    def check(self, target: Network) -> None:
        """Raises ValueError unless it was made for such a target."""
        hidden, layers = self.layer.self_attn.q_proj.in_features, self.settings.get(LAYERS)
        check_sizes(hidden, self.vocab_size, target, layers)

    def adapt(self, states_BWX: Tensor, positions_BW: Tensor, **attention: Any) -> Tensor:
        """[B, W, X]: what the target's LM head is to read, from states behind the exit's layer.

        ``attention``: see ``attend_either``.
        """
        gain: Any = self.norm.weight
        states_BWX = states_BWX.to(gain.dtype)
        return self.norm(self.layer(states_BWX, self.rotary(states_BWX, positions_BW), **attention))

    def project(self, states_BKX: Tensor, positions_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of states behind the exit's layer."""
        return self.layer.project(states_BKX, self.rotary(states_BKX, positions_BK))

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """The cross-entropy between the target's laws and its own. Takes the arguments of ``Trainable.losses``."""
        positions_1S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)[None]
        said_PX = self.adapt(states[Tap(self.exit_layer)], positions_1S)[wanted_BS]
        with torch.no_grad():
            own_PV = target.read_out(states[Tap(target.depth)][wanted_BS][:, None])[:, 0]
        return {"law": soft_cross_entropy(target.head(said_PX[:, None])[:, 0], own_PV)}


def gain_of(target: FrozenTarget) -> Tensor:
    """[X], what a target's final norm multiplies by, in float32: what it makes of a state of size 1 and mean 0."""
    size = target.head_weight.shape[1]
    unit_X = 1.0 - 2.0 * (torch.arange(size, device=target.device) % 2)
    both_2X = target.norm(torch.stack([unit_X, -unit_X]))
    return ((both_2X[0] - both_2X[1]) / 2 * unit_X).cpu()
