"""A small language model with the target's vocabulary as drafter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drafters.confidence import Confidence
from drafters.shape import Shape
from drafters.static_tree import StaticTree
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.runtime import CachedModel, load
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Want


class ModelDrafter:
    """Drafts with any causal language model that shares the target's vocabulary.

    With ``width`` 1 a chain of ``length`` tokens drawn from the model's own law (Leviathan et al., arXiv
    2211.17192); else a tree of the likeliest tokens, ``length`` levels deep, of at most ``nodes`` nodes
    (SpecInfer, arXiv 2305.09781; EAGLE-2's choice of nodes, arXiv 2406.16858). With ``tree`` the tokens of the
    ranks that it names, whatever their probabilities (Medusa, arXiv 2401.10774).

    Args:
        model: a Hugging Face id, a directory, a GGUF file, a short name, or a model in memory.
        length: tokens of the chain, or levels of the tree.
        width: children per node, and nodes that have children per level.
        nodes: most nodes of the tree; None keeps all.
        tokenizer: for a model in memory, so that vocabularies can be compared token by token.
        dtype, device, runtime: see ``specdec.runtime.load``; rounds are replayed if the target's runtime does so.
        tree: paths of ranks, such as [[0], [1], [0, 0]], in place of length, width and nodes: see ``StaticTree``.
        confidence: a chain ends behind the first token whose probability is below this number, or of which
            another ``Confidence`` says so; None drafts ``length`` tokens always.

    Raises:
        ValueError: a length, width or nodes below 1, a tree that is none, what does not go together, or (when
            decoding begins) another vocabulary.
        OSError: there is no such model.
    """

    wants: tuple[Want, ...] = ()
    static = True

    def __init__(
        self,
        model: str | Path | nn.Module | CachedModel,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        tokenizer: Any | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        runtime: str = "auto",
        tree: StaticTree | Iterable[Sequence[int]] | None = None,
        confidence: Confidence | float | None = None,
    ) -> None:
        self.shape = Shape.asked(length, width, nodes, tree, confidence)
        loaded = load(model, tokenizer, dtype, device, runtime)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self._vocabulary = 0

    @property
    def device(self) -> torch.device:
        """Where it drafts."""
        return self.model.device

    @property
    def identity(self) -> object:
        """What a recording may take it for: of another shape, it drafts something else."""
        return self, self.shape

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return self.shape.fanout

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the last generation. Raises ValueError where the vocabularies or the devices differ."""
        check_vocabulary(self, target)
        if self.model.device != target.device:
            raise ValueError(
                f"the draft model is on {self.model.device} and the target on {target.device}: put both on one"
            )
        self._vocabulary = target.vocab_size
        self.shape.prepare(target.vocab_size, target.device)
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)
        if seq.static:  # so that the first draft is like all others, and can be replayed
            self.model.advance(seq.tokens, seq.lengths)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain or a tree for every row."""
        return self.shape.draft(self.model, context, noise, self._vocabulary)

    def look(self, context: Context, window: Draft) -> Tensor:
        """[B, M, V]: its own logits after the last committed token and each node of a window."""
        return self.shape.look(self.model, context, window, self._vocabulary)

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        """A chain or a tree for every row, from what it found when it looked at a window last."""
        return self.shape.resume(self.model, context, window, own_BMV, noise, self._vocabulary)

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """A chain or a tree for every outcome of the window that it looked at last; rows b * X + x."""
        return self.shape.branch(self.model, context, window, outcomes, noise, self._vocabulary)


def check_vocabulary(drafter: ModelDrafter, target: Verifier) -> None:
    """Raises ValueError unless drafter and target mean the same by every token id."""
    mine, theirs = drafter.tokenizer, getattr(target, "tokenizer", None)
    if mine is not None and theirs is not None:
        same = mine.get_vocab() == theirs.get_vocab()
    else:  # without both tokenizers the width of the logits is all there is to compare
        same = drafter.model.vocab_size == target.vocab_size
    if not same:
        raise ValueError(
            f"the draft model's vocabulary ({drafter.model.vocab_size} ids) is not the target's "
            f"({target.vocab_size} ids): draft with a model that uses the same tokenizer"
        )
