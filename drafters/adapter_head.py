"""Weights of an adapter between a target's first layers and its head.

B rows, W tokens of one forward, S tokens of a text, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drafters.tensors import Tensors, read_config, write
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_layers import AttentionLayer, Rotary, layer_config, rms_norm
from specdec.runtime.parts import Parts

# Of a target's settings, those that an adapter takes over.
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
)


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
        settings = read_config(directory)
        head = cls(settings if exit_layer is None else {**settings, "exit_layer": exit_layer})
        tensors = Tensors.read(directory)
        tensors.fill(head)
        tensors.finish()
        return head

    @classmethod
    @torch.no_grad()
    def fresh(cls, target: Network, exit_layer: int) -> AdapterHead:
        """One that changes nothing yet: the target's early exit, with a copy of its final norm.

        Raises:
            ValueError: the target has no head or no norm that could be borrowed.
        """
        known = {name: getattr(target.config, name, None) for name in SIZES}
        rope = getattr(target.config, "rope_parameters", None) or {}
        known["rope_parameters"] = dict(rope) if "rope_theta" in rope else None
        head = cls(
            {**{name: value for name, value in known.items() if value is not None}, "exit_layer": exit_layer}
        )
        head.layer.self_attn.o_proj.weight.zero_()
        gain = getattr(Parts.of(target).norm, "weight", None)
        if isinstance(gain, Tensor):
            head.norm.load_state_dict({"weight": gain.to("cpu", torch.float32)})
        return head

    def save(self, directory: str | Path) -> None:
        """Write it, to be loaded again."""
        write(directory, self.settings, self.state_dict())

    @property
    def layer(self) -> AttentionLayer:
        """Its layer."""
        only: Any = self.layers[0]
        return only

    def check(self, parts: Parts) -> None:
        """Raises ValueError unless it was made for such a target."""
        for name, ours, theirs in (
            ("hidden size", self.layer.self_attn.q_proj.in_features, parts.hidden),
            ("vocabulary", self.vocab_size, parts.vocab_size),
        ):
            if ours != theirs:
                raise ValueError(
                    f"the adapter was made for a target with a {name} of {ours}, but this one has {theirs}"
                )

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
