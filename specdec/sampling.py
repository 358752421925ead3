"""From logits to the law that is decoded. ``...`` any shape, V vocabulary, B rows, N nodes, M = N + 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.kernels import here


@dataclass(frozen=True)
class Sampling:
    """The law that the target decodes under. The default is greedy.

    The order of the steps is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p.

    Args:
        temperature: at least 0; 0 is greedy.
        top_k: keep the k most likely tokens (and ties with the k-th); None keeps all.
        top_p: in (0, 1]; keep the smallest set of tokens whose mass reaches this (nucleus sampling).
        min_p: in [0, 1]; keep tokens at least this likely relative to the most likely one.
        repetition_penalty: above 0; logits of tokens that already occur are divided by it if positive,
            multiplied if negative (CTRL, arXiv 1909.05858). In a draft tree it sees each node's own path.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature >= 0, "temperature", self.temperature, "at least 0 (0 is greedy)")
        _check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or None for all tokens")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _check(0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        _check(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0")

    @property
    def greedy(self) -> bool:
        """Whether every law is a point mass."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether a law depends on which tokens occurred, so that ``seen`` is needed."""
        return self.repetition_penalty != 1

    def law(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Probabilities [..., V], in float32 or wider.

        Args:
            logits: [..., V].
            seen: bool [..., V], tokens that occur before; needed with a repetition penalty.
        """
        scores = self.scores(logits, seen)
        return _point(scores) if self.greedy else self._warped(scores)

    def scores(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Logits [..., V] under the repetition penalty, in float32 or wider; the law's likeliest token is theirs.

        Takes the arguments of ``law``.
        """
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.penalises:
            if seen is None:
                raise ValueError("a repetition penalty needs to know which tokens occurred: pass seen")
            punished = torch.where(scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty)
            scores = torch.where(seen, punished, scores)
        return scores

    def choice(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """int64 [...]: the likeliest token, which is what greedy decoding takes.

        Takes the arguments of ``law``.
        """
        if here(logits) and not self.penalises:
            from specdec.kernels.choice import likeliest

            return likeliest(logits)
        return self.scores(logits, seen).argmax(-1)

    def soft(self, logits: Tensor) -> Tensor:
        """Log-probabilities [..., V] at this temperature (at 1 if greedy), for estimates: nothing is cut off."""
        return (logits.float() / (self.temperature or 1.0)).log_softmax(-1)

    def _warped(self, scores: Tensor) -> Tensor:
        scores = scores / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self.top_k, -1).values[..., -1:], -torch.inf)
        if self.top_p < 1:
            scores = scores.masked_fill(~_nucleus(scores, self.top_p), -torch.inf)
        law = scores.softmax(-1)
        if self.min_p > 0:
            law = law * (law >= self.min_p * law.amax(-1, keepdim=True))
            law = law / law.sum(-1, keepdim=True)
        return law


def seen_tokens(tokens_BS: Tensor, lengths_B: Tensor, vocabulary: int) -> Tensor:
    """bool [B, V]: which tokens occur among the first ``lengths_B`` of each row."""
    inside_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device) < lengths_B[:, None]
    # Slots outside the row count for a column that is cut off again.
    where_BS = torch.where(inside_BS, tokens_BS, vocabulary)
    seen_BV = torch.zeros(len(tokens_BS), vocabulary + 1, dtype=torch.bool, device=tokens_BS.device)
    return seen_BV.scatter_(1, where_BS, True)[:, :-1]


def seen_along(seen_BV: Tensor, tokens_BN: Tensor, ancestors_BNN: Tensor) -> Tensor:
    """bool [B, M, V]: what occurs before the token that each law of a draft tree decides."""
    rows, size = tokens_BN.shape
    drafted_BNV = torch.zeros(rows, size, seen_BV.shape[1] + 1, dtype=torch.bool, device=seen_BV.device)
    where_BNN = torch.where(ancestors_BNN, tokens_BN[:, None], seen_BV.shape[1])
    drafted_BNV.scatter_(2, where_BNN, True)
    return torch.cat([seen_BV[:, None], seen_BV[:, None] | drafted_BNV[..., :-1]], 1)


def _point(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1)


def _nucleus(scores: Tensor, top_p: float) -> Tensor:
    ordered, index = scores.sort(-1, descending=True)
    law = ordered.softmax(-1)
    # A token stays if the mass in front of it has not yet reached top_p: the first one always does.
    keep = law.cumsum(-1) - law < top_p
    return torch.zeros_like(keep).scatter_(-1, index, keep)


def _check(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {rule}, not {value!r}")
