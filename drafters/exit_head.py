"""Trained exits as a head that learns: what the last layer would say, from states behind earlier ones.

B rows, S token slots, P places that count, X hidden size, R width of the gated block, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drafters.teaching import soft_cross_entropy
from drafters.trainable import FrozenTarget
from specdec.runtime.huggingface import Network
from specdec.translator import Translator, save_translators
from specdec.types import Tap

FILE = "exits.safetensors"


class ExitHead(nn.Module):
    """A ``Translator`` behind each of some layers, all of which learn side by side (arXiv 2303.08112).

    It drafts nothing: forecasts read it (``Exit.trained``). What it gives goes through the target's own norm and
    head, which stay as they are.

    Args:
        hidden: X.
        layers: of the target, that run before an exit.
        width: R; 0 leaves the gated block out.
        depth: layers of the target.

    Raises:
        ValueError: no layers, one twice, one that the target has not, or a width below 0.
    """

    def __init__(self, hidden: int, layers: Sequence[int], width: int, depth: int) -> None:
        super().__init__()
        wrong = [layer for layer in layers if not 0 < layer < depth]
        if wrong or not layers or len(set(layers)) < len(layers):
            raise ValueError(f"exits must be behind different layers from 1 to {depth - 1}, not {list(layers)}")
        if width < 0:
            raise ValueError(f"width must be at least 0, not {width}")
        self.target_layers = depth
        self.exits = nn.ModuleDict({str(layer): self._begun(hidden, width) for layer in layers})

    @staticmethod
    def _begun(hidden: int, width: int) -> nn.ParameterDict:
        """Weights that change nothing yet."""
        weights = {"matrix": torch.zeros(hidden, hidden), "bias": torch.zeros(hidden)}
        if width:
            drawn = {
                name: nn.init.normal_(torch.empty(width, hidden), std=hidden**-0.5) for name in ("gate", "value")
            }
            weights |= {**drawn, "out": torch.zeros(hidden, width)}
        return nn.ParameterDict({name: nn.Parameter(weight) for name, weight in weights.items()})

    @classmethod
    def fresh(cls, target: FrozenTarget, layers: Sequence[int] | None = None, width: int = 256) -> ExitHead:
        """Exits that say what the target's norm and head make of the states as they are.

        Args:
            target: what they are for.
            layers: None is behind half of its layers, three quarters and seven eighths.
            width: R.

        Raises:
            ValueError: see the class.
        """
        depth = target.depth
        parts = sorted({depth // 2, 3 * depth // 4, 7 * depth // 8})
        return cls(target.head_weight.shape[1], parts if layers is None else layers, width, depth)

    @property
    def translators(self) -> dict[int, Translator]:
        """By layer, over these very weights."""
        held: Any = self.exits
        return {int(layer): Translator(dict(weights.items())) for layer, weights in held.items()}

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The states behind their layers."""
        return tuple(map(Tap, self.translators))

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """By exit, the divergence of its law from the target's, KL(target || exit) in nats.

        Takes the arguments of ``Trainable.losses``.
        """
        with torch.no_grad():
            final_PV = target.read_out(states[Tap(target.depth)][wanted_BS])
            entropy = soft_cross_entropy(final_PV, final_PV)
        said = {
            layer: target.read_out(translator(states[Tap(layer)][wanted_BS]))
            for layer, translator in self.translators.items()
        }
        return {
            f"exit {layer}": soft_cross_entropy(said_PV, final_PV) - entropy for layer, said_PV in said.items()
        }

    def save(self, path: Path) -> None:
        """Write ``exits.safetensors`` into a directory, as ``specdec.translator`` reads it."""
        save_translators(path / FILE, self.translators, depth=self.target_layers)
