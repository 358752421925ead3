"""The rows being decoded. B rows, S token slots, D depth slots of an accepted path, J = D + 1 new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.kernels import here
from specdec.sampling import Sampling
from specdec.types import Advice, Context, Draft, Verdict


@dataclass(frozen=True)
class Sequences:
    """Committed tokens of every row, each with its own prompt, length and end.

    Attributes:
        tokens: int64 [B, S], prompt then committed tokens, right-padded.
        lengths: int64 [B], committed tokens, prompt included.
        prompts: int64 [B], prompt lengths.
        limits: int64 [B], length at which a row ends.
        ended: bool [B], rows that reached an end token or their limit.
        stop: int64 [K], tokens that end a row.
        sampling: the law the target decodes under.
        static: whether shapes must not depend on the rows, so that a round can be replayed for others.
        reads: the most tokens that are new to a model which has not read the rows, where the forward that reads
            them can be replayed as well; 0: its shapes may depend on the rows.
    """

    tokens: Tensor
    lengths: Tensor
    prompts: Tensor
    limits: Tensor
    ended: Tensor
    stop: Tensor
    sampling: Sampling
    static: bool = False
    reads: int = 0

    @classmethod
    def start(
        cls,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[int] = (),
        sampling: Sampling | None = None,
        device: torch.device | str = "cpu",
    ) -> Sequences:
        """Rows before the first round.

        Raises:
            ValueError: no prompt, an empty one, or nothing to generate.
        """
        if not prompts or any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("every prompt needs at least one token: an empty prompt gives the target no context")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        tokens_BS = torch.zeros(len(prompts), int(lengths_B.max()) + max_new_tokens, dtype=torch.int64)
        for row, prompt in zip(tokens_BS, prompts, strict=True):
            row[: len(prompt)] = torch.as_tensor(prompt, dtype=torch.int64)
        lengths_B = lengths_B.to(device)
        return cls(
            tokens_BS.to(device),
            lengths_B,
            lengths_B,
            lengths_B + max_new_tokens,
            torch.zeros_like(lengths_B, dtype=torch.bool),
            torch.tensor(sorted(set(stop)), dtype=torch.int64, device=device),
            sampling or Sampling(),
        )

    def padded(self, slots: int) -> Sequences:
        """The rows with at least ``slots`` token slots."""
        return replace(self, tokens=pad(self.tokens, (0, max(0, slots - self.tokens.shape[1]))))

    @property
    def done(self) -> bool:
        """Whether every row has ended."""
        return bool(self.ended.all())

    @property
    def room(self) -> Tensor:
        """int64 [B], tokens that may still be committed."""
        return torch.where(self.ended, self.lengths, self.limits) - self.lengths

    def context(self, advice: Advice | None = None) -> Context:
        """What a drafter may see of these rows."""
        return Context(self.tokens, self.lengths, self.room, self.sampling, advice, self.static, reads=self.reads)

    def append(self, draft: Draft, verdict: Verdict) -> Sequences:
        """Commit the accepted path and the token after it, up to the first end token or the limit."""
        if here(self.tokens):
            return self._appended(draft, verdict)
        new_BJ = new_tokens(draft, verdict)
        index_J = torch.arange(new_BJ.shape[1], device=new_BJ.device)
        last_BJ = torch.isin(new_BJ, self.stop) & (index_J <= verdict.accepted[:, None])
        # Tokens behind the first end token are dropped, the end token itself is kept.
        ends_B, first_B = last_BJ.max(1)
        count_B = torch.where(ends_B, first_B, verdict.accepted) + 1
        count_B = torch.minimum(count_B, self.room)
        # Slots that commit nothing rewrite the row's first token by itself.
        commits_BJ = index_J < count_B[:, None]
        slot_BJ = torch.where(commits_BJ, self.lengths[:, None] + index_J, 0)
        tokens_BS = self.tokens.scatter(1, slot_BJ, torch.where(commits_BJ, new_BJ, self.tokens[:, :1]))
        lengths_B = self.lengths + count_B
        ended_B = self.ended | (ends_B & (first_B < count_B)) | (lengths_B >= self.limits)
        return replace(self, tokens=tokens_BS, lengths=lengths_B, ended=ended_B, reads=0)

    def _appended(self, draft: Draft, verdict: Verdict) -> Sequences:
        """``append`` in one kernel."""
        from specdec.kernels.rows import appended

        rows = self.tokens, self.lengths, self.limits, self.ended, self.stop
        tokens_BS, lengths_B, ended_B = appended(rows, draft.tokens, verdict.parts)
        return replace(self, tokens=tokens_BS, lengths=lengths_B, ended=ended_B, reads=0)


def new_tokens(draft: Draft, verdict: Verdict) -> Tensor:
    """int64 [B, J]: the accepted tokens, then the correction or bonus token, then padding (0)."""
    path_BD = verdict.path
    accepted_BD = torch.where(path_BD >= 0, draft.tokens.gather(1, path_BD.clamp(min=0)), 0)
    new_BJ = pad(accepted_BD, (0, 1))
    return new_BJ.scatter(1, verdict.accepted[:, None], verdict.tokens[:, None])
