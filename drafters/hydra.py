"""Hydra: heads that also read the tokens drafted before theirs (Ankner et al., arXiv 2402.05109).

B rows, W nodes of one level, S token slots, X hidden size, Y numbers that a node remembers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from drafters.checkpoint import Tensors, fill, read, write
from drafters.confidence import Confidence
from drafters.fitting import LAYERS, made_for
from drafters.head_drafter import HeadDrafter
from drafters.heads import Block
from drafters.static_tree import StaticTree
from drafters.teaching import lessons
from specdec.runtime.huggingface import Network
from specdec.types import Tap

FILES = ("hydra_lm_head.safetensors", "hydra_lm_head.pt")
EMBEDDING = "input_embed_fn.weight"  # the target's own, which published files carry along
PREFIX = "prefix_embeding_layer."  # of Hydra++, spelled as it is


class Mixer(nn.Module):
    """First block of a head that reads tokens: ``U x + silu(W x + b)`` of the state and embeddings side by side.

    Args:
        parts: how many vectors of the hidden size are read.
        hidden: X.
    """

    def __init__(self, parts: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(parts * hidden, hidden)
        self.res_connection = nn.Linear(parts * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., parts * X] to [..., X]."""
        return self.res_connection(x) + silu(self.linear(x))


class HydraHeads(nn.Module):
    """Head k says token t + k + 2 from the target's state at t and the embeddings of tokens t + 1 to t + k + 1.

    Args:
        hidden: X.
        vocabulary: V, ignored with a shared head.
        heads: how many.
        layers: residual blocks of each, the first of which mixes.
        grounded: whether heads read tokens at all; without, they are Medusa's with a bias.
        shared_head: see ``MedusaHeads``.
        embeds: whether there is an embedding of their own, as published files have it.

    They have no weights yet: see ``load`` and ``fresh``.
    """

    target_layers: int | None = None  # published files do not say

    def __init__(
        self,
        hidden: int,
        vocabulary: int,
        heads: int = 4,
        layers: int = 1,
        grounded: bool = True,
        shared_head: bool = False,
        embeds: bool = False,
    ) -> None:
        super().__init__()
        self.hidden, self.layers, self.grounded = hidden, layers, grounded
        self.levels: int | None = heads
        self.vocabulary = None if shared_head else vocabulary
        with torch.device("meta"):
            self.hydra_mlp = nn.ModuleList(self._mlp(head + 2) for head in range(heads))
            if not shared_head:
                self.hydra_lm_head = nn.ModuleList(nn.Linear(hidden, vocabulary) for _ in range(heads))
            self.input_embed_fn = nn.Embedding(vocabulary, hidden) if embeds else None

    def _mlp(self, parts: int) -> nn.Sequential:
        first = Mixer(parts, self.hidden) if self.grounded else Block(self.hidden)
        return nn.Sequential(first, *(Block(self.hidden) for _ in range(self.layers - 1)))

    @classmethod
    def load(cls, path: str | Path) -> HydraHeads:
        """Heads of a directory or file in the published layout of the architecture ``mlp``.

        Raises:
            FileNotFoundError: there are none.
            ValueError: the file is damaged or of another architecture (Hydra++), a tensor is missing, left over or
                of a wrong shape, or the configuration says something else than the tensors.
        """
        tensors = read(path, FILES)
        refuse_others(tensors)
        heads, layers = tensors.count(r"hydra_mlp\.(\d+)\."), tensors.count(r"hydra_mlp\.\d+\.(\d+)\.")
        grounded = tensors.has(".res_connection.")
        tensors.agree(hydra_num_heads=heads, hydra_num_layers=layers, grounded_heads=grounded)
        hidden = tensors.shape("hydra_mlp.0.0.linear.weight")[0]
        shared = bool(tensors.config.get("shared_head", False))
        vocabulary = 0 if shared else tensors.shape("hydra_lm_head.0.weight")[0]
        made = cls(hidden, vocabulary, heads, layers, grounded, shared, EMBEDDING in tensors.left)
        fill(made, tensors.take)
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
    ) -> HydraHeads:
        """Heads that say what the target's own does: the paper's start, but that a mixer passes the state on.

        There it is drawn at random, so that heads begin with noise.
        """
        own = target.head_weight.detach()
        made = cls(own.shape[1], own.shape[0], heads, layers, shared_head=shared_head)

        def give(name: str, shape: tuple[int, ...]) -> Tensor:
            if name.startswith("hydra_lm_head") and name.endswith("weight"):
                return own.to(dtype, copy=True)
            if name.endswith("res_connection.weight"):
                return torch.eye(*shape, dtype=dtype, device=own.device)
            return own.new_zeros(shape, dtype=dtype)

        fill(made, give)
        made.target_layers = target.depth
        return made

    def save(self, path: str | Path, **facts: object) -> None:
        """Write a directory in the published layout; ``facts``, such as the target's name, go into its config."""
        config = {
            "hydra_num_heads": self.levels,
            "hydra_num_layers": self.layers,
            "hydra_head_arch": "mlp",
            "grounded_heads": self.grounded,
            "hidden_state_offset": 0,
            **made_for({LAYERS: self.target_layers}),
            **facts,
        }
        shared = {"shared_head": True} if self.vocabulary is None else {}
        write(path, FILES[0], self.state_dict(), {**config, **shared})

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The state behind the last layer."""
        return (Tap(depth),)

    def start(self, state_BWX: Tensor) -> Tensor:
        """The state, which is what a node remembers before it has read a token."""
        return state_BWX

    def read(self, level: int, memory_BWY: Tensor, tokens_BW: Tensor, target: Network) -> Tensor:
        """The state and the embeddings of all tokens so far, side by side."""
        if not self.grounded:
            return memory_BWY
        own = self.input_embed_fn
        embedded_BWX = target.embed(tokens_BW) if own is None else embedding(tokens_BW, own.weight)
        return torch.cat([memory_BWY, embedded_BWX.to(memory_BWY.dtype)], -1)

    def say(self, level: int, memory_BWY: Tensor, target: Network) -> Tensor:
        """Logits [B, W, V] of a head."""
        said_BWX = self.hydra_mlp[level](memory_BWY)
        return target.head(said_BWX) if self.vocabulary is None else self.hydra_lm_head[level](said_BWX)

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """By head, its cross-entropy behind the true tokens: the loss is their sum.

        Takes the arguments of ``drafters.teaching.lessons``.
        """
        told = enumerate(lessons(self, states, tokens_BS, wanted_BS, target, len(self.hydra_mlp)), 1)
        return {f"head {number}": lesson.cross_entropy() for number, lesson in told}


def refuse_others(tensors: Tensors) -> None:
    """Raises ValueError for published heads that read more than the target's last state and what was drafted."""
    kind = tensors.config.get("hydra_head_arch", "mlp")
    if kind == "prefix-mlp" or tensors.has(PREFIX):
        raise ValueError(
            f"{tensors.file} is Hydra++ (prefix-mlp), whose decoder layer over all states of a row is not "
            "supported: take heads of the architecture mlp"
        )
    if kind != "mlp":
        raise ValueError(f"{tensors.file} has heads of the architecture {kind}: only mlp is supported")
    if tensors.config.get("hidden_state_offset", 0):
        raise ValueError(f"{tensors.file} reads states from before the last layer: hidden_state_offset must be 0")


class HydraDrafter(HeadDrafter):
    """Drafts with Hydra's heads on the state behind the target's last layer (Ankner et al., arXiv 2402.05109).

    Args:
        weights: a directory or file of trained heads (``hydra_lm_head``), or heads in memory.
        length: tokens of the chain, or levels of the tree; None takes all heads.
        width, nodes, tree, confidence: see ``ModelDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``HydraHeads.load`` and ``HeadDrafter``.
    """

    def __init__(
        self,
        weights: str | Path | HydraHeads,
        length: int | None = None,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        heads = weights if isinstance(weights, HydraHeads) else HydraHeads.load(weights)
        super().__init__(heads, length, width, nodes, tree, confidence)
