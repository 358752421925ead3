"""How checkpoints name the parts of their MTP modules, and in what else the modules differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Names of one family.

    Attributes:
        prefix: in front of all, with ``{layer}`` for the number of layers of the target. Of several modules the
            first is meant.
        parts: what follows it, by the name of a part of ``MTPHead``.
        state_first: whether the projection reads the state before the embedding.
        goes_on_normed: whether the next pair reads what the module made behind its norm.
    """

    prefix: str
    parts: Mapping[str, str]
    state_first: bool
    goes_on_normed: bool

    def start(self, depth: int) -> str:
        """The prefix in a target of so many layers."""
        return self.prefix.format(layer=depth)

    def name(self, name: str, depth: int) -> str:
        """The published name of a weight of ``MTPHead``."""
        for ours, theirs in self.parts.items():
            if name.startswith(ours):
                return self.start(depth) + theirs + name.removeprefix(ours)
        return self.start(depth) + name


# Qwen3-Next and later.
QWEN = Layout(
    "mtp.",
    {
        "embedding_norm.": "pre_fc_norm_embedding.",
        "state_norm.": "pre_fc_norm_hidden.",
        "project.": "fc.",
        "layer.": "layers.0.",
    },
    state_first=False,
    goes_on_normed=True,
)
# DeepSeek-V3 and GLM-4.5: behind the layers of the target. Copies of its embedding and head come along.
DEEPSEEK = Layout(
    "model.layers.{layer}.",
    {
        "embedding_norm.": "enorm.",
        "state_norm.": "hnorm.",
        "project.": "eh_proj.",
        "norm.": "shared_head.norm.",
        "head.": "shared_head.head.",
        "layer.": "",
    },
    state_first=False,
    goes_on_normed=False,
)
# MiMo-7B.
MIMO = Layout(
    "model.mtp_layers.0.",
    {
        "embedding_norm.": "token_layernorm.",
        "state_norm.": "hidden_layernorm.",
        "project.": "input_proj.",
        "norm.": "final_layernorm.",
        "layer.": "",
    },
    state_first=True,
    goes_on_normed=True,
)


def layout_of(names: Iterable[str], depth: int) -> Layout | None:
    """The layout of a checkpoint's names whose target has so many layers, None where there is no module."""
    held = list(names)
    for layout in (QWEN, DEEPSEEK, MIMO):
        if any(name.startswith(layout.start(depth)) for name in held):
            return layout
    return None
