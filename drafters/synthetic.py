"""A draft model of a real shape that agrees with a synthetic target on a chosen share of the tokens."""

from __future__ import annotations

import torch

from drafters.streaming import StreamingDrafter, Successors
from specdec.runtime import load
from specdec.runtime.synthetic import Synthetic


class SyntheticDrafter(StreamingDrafter):
    """A ``ModelDrafter`` for targets such as ``synthetic/qwen3-8b``: real speed at an acceptance that is known.

    After a share ``agreement`` of the vocabulary, exactly, its next token is the target's, else it is another.
    So that share of a chain's tokens is accepted: exactly over the target's whole cycle, which visits every token
    once, and up to the choice of a few tokens in a short text.

    Args:
        model: ``synthetic/qwen3-0.6b`` or another of ``specdec.runtime.synthetic.SHAPES``; its vocabulary must be
            the target's.
        agreement: share of the tokens after which it is right, 0 to 1.
        length, width, nodes: see ``ModelDrafter``. Wider trees gain nothing: a second guess is right by
            chance only.
        seed: chooses the tokens after which it is wrong.
        tokens_per_step: η, tokens that a forward yields per branch. A greedy draft stays what it is with one, and
            takes a forward per η tokens. Chains only.
        dtype, device, runtime: see ``specdec.runtime.load``.

    Raises:
        ValueError: an unknown shape, an agreement that is no share, tokens per step that are no whole number
            from 1, or what ``StreamingDrafter`` refuses.
    """

    def __init__(
        self,
        model: str,
        agreement: float = 0.8,
        length: int = 5,
        width: int = 1,
        nodes: int | None = None,
        seed: int = 0,
        tokens_per_step: int = 1,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        runtime: str = "auto",
    ) -> None:
        asked = Synthetic(model, agreement, seed)
        made = load(asked, dtype=dtype, device=device, runtime=runtime)
        streams = Successors.of(asked.successors, tokens_per_step, made.model.device)
        super().__init__(made.model, streams, length, width, nodes, made.tokenizer)
