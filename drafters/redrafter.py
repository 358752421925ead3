"""ReDrafter: one recurrent head on the target's last state, and a beam search (Zhang et al., arXiv 2403.09919).

B rows, W nodes of one level, S token slots, X hidden size, Y = 2X (the target's state, then the recurrent one),
E exit size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from drafters.checkpoint import FILES, fill, read, write
from drafters.confidence import Confidence
from drafters.fitting import LAYERS, made_for
from drafters.head_drafter import HeadDrafter
from drafters.heads import Block
from drafters.static_tree import StaticTree
from drafters.teaching import lessons
from specdec.runtime.huggingface import Network
from specdec.types import Tap

TAUGHT = 4  # tokens ahead that are learned


class RecurrentHead(nn.Module):
    """``s' = silu(W e + U s + b)`` over the tokens' embeddings e, from s = 0; what follows is said by one head.

    The head reads the target's state and s side by side: residual blocks, and a linear map to logits.

    Args:
        hidden: X.
        vocabulary: V, ignored with a shared head.
        exit: E, width of the blocks; where it is not 2X, a linear map comes before them.
        layers: residual blocks.
        rnn: whether there is a recurrence; without, s is the sum of the embeddings.
        shared_head: see ``MedusaHeads``; E must be X.

    It has no weights yet: see ``load`` and ``fresh``.

    Raises:
        ValueError: a shared head on an exit of another size than the target's.
    """

    levels: int | None = None
    target_layers: int | None = None  # published files do not say

    def __init__(
        self,
        hidden: int,
        vocabulary: int,
        exit: int,
        layers: int = 2,
        rnn: bool = True,
        shared_head: bool = False,
    ) -> None:
        super().__init__()
        if shared_head and exit != hidden:
            raise ValueError(f"the target's head reads {hidden} numbers: exit_dim must be that, not {exit}")
        self.hidden, self.exit, self.layers, self.rnn = hidden, exit, layers, rnn
        self.vocabulary = None if shared_head else vocabulary
        with torch.device("meta"):
            if exit != 2 * hidden:
                self.input_proj = nn.Linear(2 * hidden, exit)
            blocks: list[nn.Module] = [Block(exit) for _ in range(layers)]
            if not shared_head:
                blocks.append(nn.Linear(exit, vocabulary, bias=False))
            self.lm_head = nn.Sequential(*blocks)
            if rnn:
                self.rnn_u = nn.Linear(hidden, hidden)
                self.rnn_w = nn.Linear(hidden, hidden, bias=False)

    @classmethod
    def load(cls, path: str | Path) -> RecurrentHead:
        """A head of a directory or file in the published layout.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file is damaged, a tensor is missing, left over or of a wrong shape, or the
                configuration says something else than the tensors.
        """
        tensors = read(path, FILES)
        layers, rnn = tensors.count(r"lm_head\.(\d+)\.linear\."), tensors.has("rnn_")
        shared = bool(tensors.config.get("shared_head", False))
        last = "lm_head.0.linear.weight" if shared else f"lm_head.{layers}.weight"
        vocabulary, exit = tensors.shape(last)
        both = tensors.shape("input_proj.weight")[1] if tensors.has("input_proj.") else exit
        facts = {"hidden_size": both // 2, "exit_dim": exit, "num_draft_layers": layers, "rnn": rnn}
        tensors.agree(**facts, **({} if shared else {"vocab_size": vocabulary}))
        made = cls(both // 2, vocabulary, exit, layers, rnn, shared)
        fill(made, tensors.take)
        made.target_layers = made_for(tensors.config).get(LAYERS)
        tensors.finish()
        return made

    @classmethod
    def fresh(
        cls, target: Network, layers: int = 2, shared_head: bool = False, dtype: torch.dtype = torch.float32
    ) -> RecurrentHead:
        """A head of exit size X that says what the target's own does; the recurrence begins as a plain sum.

        Published training begins at random.
        """
        own = target.head_weight.detach()
        made = cls(own.shape[1], own.shape[0], own.shape[1], layers, shared_head=shared_head)

        def give(name: str, shape: tuple[int, ...]) -> Tensor:
            if name == f"lm_head.{layers}.weight":
                return own.to(dtype, copy=True)
            if name in ("input_proj.weight", "rnn_u.weight", "rnn_w.weight"):
                return torch.eye(*shape, dtype=dtype, device=own.device)
            return own.new_zeros(shape, dtype=dtype)

        fill(made, give)
        made.target_layers = target.depth
        return made

    def save(self, path: str | Path, **facts: object) -> None:
        """Write a directory in the published layout; ``facts`` go into its config."""
        config = {
            "model_type": "recurrent_drafting_drafter",
            "hidden_size": self.hidden,
            "exit_dim": self.exit,
            "num_draft_layers": self.layers,
            "rnn": self.rnn,
            **made_for({LAYERS: self.target_layers}),
            **facts,
        }
        head = {"shared_head": True} if self.vocabulary is None else {"vocab_size": self.vocabulary}
        write(path, FILES[0], self.state_dict(), {**config, **head})

    def taps(self, depth: int) -> tuple[Tap, ...]:
        """The state behind the last layer."""
        return (Tap(depth),)

    def start(self, state_BWX: Tensor) -> Tensor:
        """The target's state, and a recurrent one of zeros."""
        return torch.cat([state_BWX, torch.zeros_like(state_BWX)], -1)

    def read(self, level: int, memory_BWY: Tensor, tokens_BW: Tensor, target: Network) -> Tensor:
        """The target's state as it was, and the recurrent one behind a token."""
        state_BWX, s_BWX = memory_BWY.chunk(2, -1)
        embedded_BWX = target.embed(tokens_BW).to(memory_BWY.dtype)
        s_BWX = silu(self.rnn_w(embedded_BWX) + self.rnn_u(s_BWX)) if self.rnn else embedded_BWX + s_BWX
        return torch.cat([state_BWX, s_BWX], -1)

    def say(self, level: int, memory_BWY: Tensor, target: Network) -> Tensor:
        """Logits [B, W, V]."""
        inner = self.input_proj(memory_BWY) if self.exit != 2 * self.hidden else memory_BWY
        said = self.lm_head(inner)
        return target.head(said) if self.vocabulary is None else said

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """By how far ahead, the distillation of the target's law behind the true tokens: the loss is their sum.

        Takes the arguments of ``drafters.teaching.lessons``.
        """
        told = enumerate(lessons(self, states, tokens_BS, wanted_BS, target, TAUGHT), 1)
        return {f"ahead {number}": lesson.distillation(target) for number, lesson in told}


class ReDrafter(HeadDrafter):
    """Drafts with a recurrent head on the state behind the target's last layer (Zhang et al., arXiv 2403.09919).

    With ``width`` above 1 this is the paper's beam search, whose beams lie in a tree from the beginning, so that
    what they share is there once: at every level the ``width`` likeliest beams go on, and of all nodes on the way
    the ``nodes`` likeliest are kept. Laws are whole; published code cuts them off behind the 50 likeliest tokens.

    Args:
        weights: a directory or file of a trained head, or one in memory.
        length: tokens of the chain, or of a beam.
        width, nodes, tree, confidence: see ``ModelDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``RecurrentHead.load`` and ``HeadDrafter``.
    """

    def __init__(
        self,
        weights: str | Path | RecurrentHead,
        length: int = 4,
        width: int = 1,
        nodes: int | None = None,
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        head = weights if isinstance(weights, RecurrentHead) else RecurrentHead.load(weights)
        super().__init__(head, length, width, nodes, tree, confidence)
