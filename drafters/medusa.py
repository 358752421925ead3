"""Medusa: several heads on the target's last state, each for a token further ahead (Cai et al., arXiv 2401.10774).

B rows, W nodes of one level, S token slots, X hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from drafters.checkpoint import fill, read, write
from drafters.confidence import Confidence
from drafters.fitting import LAYERS, made_for
from drafters.head_drafter import HeadDrafter
from drafters.heads import Block
from drafters.static_tree import StaticTree
from drafters.teaching import lessons
from specdec.runtime.huggingface import Network
from specdec.types import Tap

log = logging.getLogger(__name__)

FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
DECAY = 0.8  # weight of a head's loss over that of the one before


class MedusaHeads(nn.Module):
    """Head k says token t + k + 2 from the target's state at t alone, by residual blocks and a linear map.

    Args:
        hidden: X.
        vocabulary: V, ignored with a shared head.
        heads: how many.
        layers: residual blocks of each.
        shared_head: whether the target's own head stands in for the linear maps: a variant of this project, with a
            hundredth of the weights where a vocabulary is large.

    They have no weights yet: see ``load`` and ``fresh``.
    """

    target_layers: int | None = None  # published files do not say

    def __init__(
        self, hidden: int, vocabulary: int, heads: int = 4, layers: int = 1, shared_head: bool = False
    ) -> None:
        super().__init__()
        self.hidden, self.layers = hidden, layers
        self.levels: int | None = heads
        self.vocabulary = None if shared_head else vocabulary
        with torch.device("meta"):
            self.heads = nn.ModuleList(self._head() for _ in range(heads))

    def _head(self) -> nn.Sequential:
        blocks: list[nn.Module] = [Block(self.hidden) for _ in range(self.layers)]
        if self.vocabulary is not None:
            blocks.append(nn.Linear(self.hidden, self.vocabulary, bias=False))
        return nn.Sequential(*blocks)

    @classmethod
    def load(cls, path: str | Path) -> MedusaHeads:
        """Heads of a directory or file in the published layout, in the types that they have there.

        How many heads and layers there are is counted: published configurations say two beside files of five.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file is damaged, or a tensor is missing, left over or of a wrong shape.
        """
        tensors = read(path, FILES)
        heads, layers = tensors.count(r"(\d+)\."), tensors.count(r"\d+\.(\d+)\.linear\.")
        for key, counted in (("medusa_num_heads", heads), ("medusa_num_layers", layers)):
            if tensors.config.get(key, counted) != counted:
                log.warning("%s says %s=%s, but holds %d", tensors.file, key, tensors.config[key], counted)
        hidden = tensors.shape("0.0.linear.weight")[0]
        shared = bool(tensors.config.get("shared_head", False))
        vocabulary = 0 if shared else tensors.shape(f"0.{layers}.weight")[0]
        made = cls(hidden, vocabulary, heads, layers, shared)
        fill(made.heads, tensors.take)
        made.target_layers = made_for(tensors.config).get(LAYERS)
        tensors.finish()
        return made

    @classmethod
    def fresh(
        cls,
        target: Network,
        heads: int = 4,
        layers: int = 1,
        shared_head: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> MedusaHeads:
        """Heads that say what the target's own does, the paper's start: blocks of zeros, linear maps copied."""
        own = target.head_weight.detach()
        made = cls(own.shape[1], own.shape[0], heads, layers, shared_head)

        def give(name: str, shape: tuple[int, ...]) -> Tensor:
            return (
                own.to(dtype, copy=True)
                if name.endswith(f".{layers}.weight")
                else own.new_zeros(shape, dtype=dtype)
            )

        fill(made.heads, give)
        made.target_layers = target.depth
        return made

    def save(self, path: str | Path, **facts: object) -> None:
        """Write a directory in the published layout; ``facts``, such as the target's name, go into its config."""
        config = {
            "medusa_num_heads": self.levels,
            "medusa_num_layers": self.layers,
            **made_for({LAYERS: self.target_layers}),
            **facts,
        }
        shared = {"shared_head": True} if self.vocabulary is None else {}
        write(path, FILES[0], self.heads.state_dict(), {**config, **shared})

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The state behind the last layer."""
        return (Tap(depth),)

    def start(self, state_BWX: Tensor) -> Tensor:
        """The state, which is all that a node remembers."""
        return state_BWX

    def read(self, level: int, memory_BWY: Tensor, tokens_BW: Tensor, target: Network) -> Tensor:
        """The state: no head sees a drafted token."""
        return memory_BWY

    def say(self, level: int, memory_BWY: Tensor, target: Network) -> Tensor:
        """Logits [B, W, V] of a head."""
        said_BWX = self.heads[level](memory_BWY)
        return target.head(said_BWX) if self.vocabulary is None else said_BWX

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """By head, its cross-entropy times 0.8 to the power of its number (Medusa-1): the loss is their sum.

        Takes the arguments of ``drafters.teaching.lessons``.
        """
        told = enumerate(lessons(self, states, tokens_BS, wanted_BS, target, len(self.heads)), 1)
        return {f"head {number}": DECAY**number * lesson.cross_entropy() for number, lesson in told}


class MedusaDrafter(HeadDrafter):
    """Drafts with Medusa's heads on the state behind the target's last layer (Cai et al., arXiv 2401.10774).

    The tokens of a chain are drawn independently of each other, each from its head's law. Of a tree the likeliest
    nodes are kept, by the product of the heads' probabilities.

    Args:
        weights: a directory or file of trained heads (``medusa_lm_head``), or heads in memory.
        length: tokens of the chain, or levels of the tree; None takes all heads.
        width, nodes, tree, confidence: see ``ModelDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``MedusaHeads.load`` and ``HeadDrafter``.
    """

    def __init__(
        self,
        weights: str | Path | MedusaHeads,
        length: int | None = None,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        heads = weights if isinstance(weights, MedusaHeads) else MedusaHeads.load(weights)
        super().__init__(heads, length, width, nodes, tree, confidence)
