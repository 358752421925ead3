"""Speculative streaming: a head says several tokens a forward, and verifies them (arXiv 2402.11131)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from drafters.feature_drafter import FeatureDrafter
from drafters.pace import Pace
from drafters.roots import Roots, fit
from drafters.stream_head import StreamHead
from drafters.stream_model import StreamModel
from drafters.stream_rollout import streamed
from drafters.window import check_length
from specdec.hypotheses import Hypotheses
from specdec.noise import Noise
from specdec.types import Context, Draft


class StreamDrafter(FeatureDrafter):
    """Drafts chains with a ``StreamHead``, several tokens a forward (Bhendawade et al., arXiv 2402.11131).

    The tokens and their laws are those of the same head one token at a time: its streams only guess what its main
    stream will say, and a guess is drafted where the main stream says so too.

    Args:
        weights: a directory or file of a trained head, or a head in memory.
        length: most tokens of a draft.
        steps: most forwards of a draft. The first yields one token, each other one up to 1 + ``streams``, and at
            least one: a draft whose guesses were wrong is shorter than ``length``. None is ``length``, with which
            no draft is; without replay forwards end where all rows have theirs, replayed they never do.
        streams: how many of the head's streams to use; None uses all, 0 drafts one token a forward.
        candidates: tokens that are guessed side by side from the first stream's law, each followed by the guesses
            of the other streams; one of them at most is right.
        device: see ``FeatureDrafter``.

    Raises:
        FileNotFoundError, ValueError: see ``StreamHead.load`` and ``FeatureDrafter``; steps below 1, streams that
            the head does not have, or more candidates than tokens that it knows.
    """

    kind = StreamModel

    def __init__(
        self,
        weights: str | Path | StreamHead,
        length: int = 7,
        steps: int | None = 4,
        streams: int | None = None,
        candidates: int = 8,
        device: str | torch.device | None = None,
    ) -> None:
        head = weights if isinstance(weights, StreamHead) else StreamHead.load(weights)
        super().__init__(head, check_length(length), device=device)
        steps, streams = length if steps is None else steps, head.count if streams is None else streams
        known = len(head.ids)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps!r}")
        if not isinstance(streams, int) or not 0 <= streams <= head.count:
            raise ValueError(f"streams must be from 0 to {head.count} for this head, not {streams!r}")
        if not isinstance(candidates, int) or not 1 <= candidates <= known:
            raise ValueError(f"candidates must be from 1 to {known} for this head, not {candidates!r}")
        self.pace = Pace(length, steps, streams, candidates)

    @property
    def identity(self) -> object:
        """What a recording may take it for: at another pace, it drafts something else."""
        return self, self.pace

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.pace.most

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain for every row."""
        model, pace = self._streaming, self._pace(context.depth)
        model.see(context.advice)
        if pace.length < 1:
            return Draft.empty(context.lengths)
        behind = self.shape.behind(model, context.others) if context.static else None
        # Libraries plan anew for a mask of a new shape: the forward that reads a prompt asks no stream.
        guesses = 0 if context.static and not model.follows else pace.guesses(1)
        said_BFV = model.open(context.tokens, context.lengths, guesses, behind, context.reads)
        said_BFV = fit(said_BFV, model.vocab_size)
        roots = Roots.last(context, said_BFV[:, :1], said_BFV.shape[1] - 1, model.vocab_size)
        return streamed(model, roots, said_BFV[:, None, 1:], noise, pace, model.vocab_size, context.static)

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        """See ``ModelDrafter``. No stream was asked when the window was looked at: the first guesses come late."""
        model, pace = self._streaming, self._pace(context.depth)
        if pace.length < 1:
            return Draft.empty(context.lengths)
        model.hang(context.lengths, (window.tokens, window.parents), window.fanout == 1, context.static)
        roots = Roots.beside(context, window, own_BMV[:, :1], model.vocab_size)
        return streamed(model, roots, None, noise, pace, model.vocab_size, context.static)

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """See ``ModelDrafter``, and ``resume``."""
        model, depth = self._streaming, context.depth
        pace = self._pace(None if depth is None else depth - 1)
        if pace.length < 1:
            return Draft.empty(context.lengths.repeat_interleave(outcomes.size))
        model.hang(context.lengths, (window.tokens, window.parents), window.fanout == 1, context.static)
        roots = Roots.supposed(model, context, window, outcomes, model.vocab_size)
        return streamed(model, roots, None, noise, pace, model.vocab_size, context.static)

    @property
    def _streaming(self) -> StreamModel:
        return cast(StreamModel, self._model)

    def _pace(self, depth: int | None) -> Pace:
        """Where no more than ``depth`` tokens can be committed; None where nobody knows."""
        return self.pace if depth is None else replace(self.pace, length=min(self.pace.length, depth))
