"""The whole target on one device, every node of a draft in one forward.

B rows, N draft nodes, M = N + 1 (the last committed token, then the nodes), V vocabulary, K tapped tokens,
P tokens that were fed before the nodes, D depth slots of an accepted path, k likeliest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specdec.exit import Exit, Glimpse, Hint
from specdec.kernels import here
from specdec.runtime import CachedModel, load
from specdec.runtime.model import Scores
from specdec.runtime.replay import Replay
from specdec.sampling import seen_along, seen_tokens
from specdec.sequences import Sequences
from specdec.types import Advice, Draft, Tap, Top, Tops, Verdict, Want


class FullVerifier:
    """Scores a draft tree with one forward of the target.

    Args:
        model: a Hugging Face id, a directory, a GGUF file, a short name such as ``smollm2-135m-instruct``,
            or a Hugging Face model in memory.
        tokenizer: for a model in memory, if text is to go in or out.
        dtype, device, runtime: see ``specdec.runtime.load``.
        width: tokens of every forward after prefill, drafts being padded; None takes as many as a draft has. Plain
            decoding at the width of a verification, ``1 + drafter.size``, rounds as that does: outputs are then
            equal bit by bit.

    Raises:
        OSError: there is no such model.
        ValueError: it is damaged, of an unsupported architecture, or a runtime or a width that it cannot have.
    """

    def __init__(
        self,
        model: str | Path | nn.Module | CachedModel,
        tokenizer: Any | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        runtime: str = "auto",
        width: int | None = None,
    ) -> None:
        loaded = load(model, tokenizer, dtype, device, runtime)
        self.replay = Replay() if loaded.graphed else None
        self.model, self.tokenizer, self.end_tokens = loaded.model, loaded.tokenizer, loaded.end_tokens
        self.width = width
        self._wants: tuple[Want, ...] = ()
        self._exit: Exit | None = None

    @classmethod
    def from_pretrained(cls, model: str | Path, **options: Any) -> FullVerifier:
        """The same as the constructor, by the name that Hugging Face uses."""
        return cls(model, **options)

    @property
    def identity(self) -> object:
        """What a recording may take it for: drafters may want to see other things, forecasts other exits."""
        return FullVerifier, self.model, self._wants, self._exit

    @property
    def width(self) -> int | None:
        """Tokens of every forward after prefill; None takes as many as a draft has.

        Raises ValueError for one below 1, and where outputs at that width would not be equal bit by bit.
        """
        return self._width

    @width.setter
    def width(self, width: int | None) -> None:
        if width is not None and self.replay is None:
            raise ValueError(
                "a fixed width needs runtime=graphed, and so a GPU: only the attention of replayed rounds adds up "
                "in an order that is the same wherever a token lies"
            )
        if width is not None and not self.model.network.brief:
            network = self.model.network
            name, dtype = type(network.module).__name__, str(network.dtype).removeprefix("torch.")
            raise ValueError(
                f"a fixed width needs our attention, but {name} in {dtype} runs with PyTorch's, whose order of "
                "additions is not known"
            )
        if width is not None and width < 1:
            raise ValueError(f"width must be at least 1 token, not {width}")
        self._width = width

    @property
    def vocab_size(self) -> int:
        """V, width of the target's logits."""
        return self.model.vocab_size

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.model.device

    def begin(self, seq: Sequences, wants: tuple[Want, ...] = (), exit: Exit | None = None) -> None:
        """Forget the last generation.

        Raises:
            ValueError: the rows outgrow the model's positions, or it has no such exit, or fewer tokens than are
                wanted.
        """
        if exit is not None:
            exit.of(self.model)
        self._wants, self._exit = wants, exit
        if self._top > self.vocab_size:
            raise ValueError(f"the target has {self.vocab_size} tokens: it cannot name the {self._top} likeliest")
        self.model.begin(len(seq.tokens), seq.tokens.shape[1], int(seq.limits.max()), seq.static)

    @property
    def _taps(self) -> tuple[Tap, ...]:
        return tuple(want for want in self._wants if isinstance(want, Tap))

    @property
    def _top(self) -> int:
        """k, the most that is wanted; 0 for none."""
        return max((want.count for want in self._wants if isinstance(want, Top)), default=0)

    def score(self, seq: Sequences, draft: Draft, hint: Hint | None = None) -> FullEvidence:
        """One forward over what the cache lacks of the rows, and the draft; ``hint`` sees the early exit."""
        # All but the last committed token went through the target when they were drafted or corrected.
        behind, chain = 1 if seq.static else None, draft.fanout == 1
        nodes = (draft.tokens, draft.parents)
        glance, seen = None, Seen(hint)
        if self._exit is not None and hint is not None:
            glance = self._exit.glance(self.model, draft, seq.sampling, seen)
        told = nodes, self._taps, behind, chain, glance, seq.reads
        scores = self.model.advance(seq.tokens, seq.lengths, *told)
        return FullEvidence(seq, draft, scores, seen.state, self._top)

    def commit(self, seq: Sequences, draft: Draft, verdict: Verdict) -> Sequences:
        """Append the accepted path and the token after it, and keep the path's keys and values."""
        after = seq.append(draft, verdict)
        self.model.keep(verdict.path, verdict.accepted, after.tokens, after.lengths)
        return after


@dataclass
class Seen:
    """Keeps what there is to see at the early exit, and shows it at once."""

    hint: Hint | None
    state: Tensor | None = None

    def __call__(self, glimpse: Glimpse) -> None:
        self.state = glimpse.state
        if self.hint is not None:
            self.hint(glimpse)


@dataclass(frozen=True)
class FullEvidence:
    """What one forward of the target found out."""

    seq: Sequences
    draft: Draft
    scores: Scores
    early: Tensor | None
    top: int = 0

    def laws(self) -> Tensor:
        """float [B, M, V], the law each next token is decoded under."""
        return self._laws

    @cached_property
    def _laws(self) -> Tensor:
        return self.seq.sampling.law(self.scores.logits, self._seen)

    def choices(self) -> Tensor:
        """int64 [B, M], the likeliest next tokens."""
        return self.seq.sampling.choice(self.scores.logits, self._seen)

    @property
    def _seen(self) -> Tensor | None:
        """bool [B, M, V], which tokens occurred; None where nobody asks."""
        if not self.seq.sampling.penalises:
            return None
        seen_BV = seen_tokens(self.seq.tokens, self.seq.lengths, self.scores.logits.shape[-1])
        return seen_along(seen_BV, self.draft.tokens, self.draft.ancestors)

    def along(self, verdict: Verdict) -> Advice | None:
        """Tapped states of the tokens fed before the nodes and of the accepted path; likeliest tokens all over."""
        if self.scores.positions is None:
            none_B0 = self.draft.parents[:, :0]
            return Advice({}, none_B0, self._tops()) if self.top else None
        position_BW = self.scores.positions
        which_BK, position_BK = along(position_BW, verdict.path, position_BW.shape[1] - self.draft.size)
        states = {
            tap: state.gather(1, which_BK[..., None].expand(-1, -1, state.shape[-1]))
            for tap, state in self.scores.states.items()
        }
        return Advice(states, position_BK, self._tops())

    def _tops(self) -> Tops | None:
        if not self.top:
            return None
        root_B1 = self.seq.tokens.gather(1, self.seq.lengths[:, None] - 1)
        successors_BMk = self.scores.logits.topk(self.top, -1).indices
        return Tops(torch.cat([root_B1, self.draft.tokens], 1), self.draft.parents, successors_BMk)


def along(position_BW: Tensor, path_BD: Tensor, fed: int) -> tuple[Tensor, Tensor]:
    """int64 [B, K] each: which tokens of a forward are committed now, the first ``fed`` and the accepted path, and
    their positions, -1 for padding."""
    if here(path_BD):
        from specdec.kernels import rows

        return rows.along(position_BW, path_BD, fed)
    fed_BP = torch.arange(fed, device=path_BD.device).expand(len(path_BD), -1)
    which_BK = torch.cat([fed_BP, fed + path_BD.clamp(min=0)], 1)
    real_BK = torch.cat([torch.ones_like(fed_BP, dtype=torch.bool), path_BD >= 0], 1)
    return which_BK, torch.where(real_BK, position_BW.gather(1, which_BK), -1)
