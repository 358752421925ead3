"""Why did greedy decoding not give the tokens of plain decoding? A replay in higher precision tells.

V vocabulary, K leading candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from specdec.runtime import CachedModel
from specdec.runtime.huggingface import Network

Kind = Literal["tie-flip", "drift", "bug"]

CANDIDATES = 32  # tokens over which rounding is measured, and among which a disputed one must be
ROUNDINGS = 2  # what adds up in a dispute: the errors of two logits in the layers, of two runs in the format


@dataclass(frozen=True)
class Mismatch:
    """The first position at which two greedy runs differ. Logits are those of the replay in higher precision.

    Attributes:
        position: index among the new tokens.
        plain_token: what plain decoding chose, None where its run had ended.
        other_token: what the other run chose, None where that one had ended.
        kind: "tie-flip", "drift" or "bug", see ``Triage``.
        margin: logit of the likeliest token less that of the second likeliest.
        gap: logit difference of the two tokens in dispute; None where one run had ended.
        top1: the likeliest token.
        top2: the second likeliest.
        unit: spacing of the low precision's numbers at the disputed logits.
        rounding: the largest gap that rounding inside the layers explains at this position, as measured.
    """

    position: int
    plain_token: int | None
    other_token: int | None
    kind: Kind
    margin: float
    gap: float | None
    top1: int
    top2: int
    unit: float
    rounding: float

    def as_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        return asdict(self)


class Triage:
    """Tells what rounding does from what a bug does, where a greedy run differs from plain decoding.

    Forwards of different widths add up the same numbers in different orders, so in low precision two correct
    runs may choose differently where two tokens are close. At the first difference the model runs again over
    the prompt and the tokens that both runs agree on: once as it is, and once in float32 (a float32 model: in
    float64, but for what the model itself computes in float32). Both are plain Hugging Face forwards, without
    this package's attention or cache, so that they cannot share its bugs.

    All gaps are of the higher precision's logits; a *unit* is the spacing of the lower precision's numbers at
    the disputed logits.

    - tie-flip: the two tokens are at most two units apart. Rounding two logits to the format (half a unit
      each) moves their gap by up to one unit, and there are two runs: the format can hardly tell them apart.
    - drift: they are further apart, but within what rounding inside the layers explains. A run prefers the
      wrong one of two tokens only if the errors of their two logits make up for the gap; so the bound is
      twice the largest difference between the two replays' logits, over the 32 leading candidates.
    - bug: rounding does not explain it. One of the tokens is further below the likeliest than both bounds
      allow, or is not among the leading candidates; or one run ended where the other went on.

    Within the bounds rounding *can* be the cause; to rule out a bug there, compare the runs in float32.

    Args:
        model: the target. Its copy in higher precision is made at the first mismatch and kept.
    """

    def __init__(self, model: CachedModel) -> None:
        self._network = model.network

    @torch.inference_mode()
    def __call__(self, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int]) -> Mismatch | None:
        """Compare the new tokens of two runs on one prompt; None if they are equal.

        Raises:
            ValueError: an empty prompt.
        """
        if len(prompt) == 0:
            raise ValueError("the prompt is empty: the runs to compare had at least one token of context")
        position = first_difference(plain, other)
        if position is None:
            return None
        tokens_1W = torch.tensor([[*prompt, *plain[:position]]], device=self._network.device)
        low_V = self._network.replay(tokens_1W)[0]
        exact_V = self._exact.replay(tokens_1W)[0].to(low_V.device)
        return judge(exact_V, low_V, position, at(plain, position), at(other, position))

    @cached_property
    def _exact(self) -> Network:
        return self._network.upcast(torch.float64 if self._network.dtype == torch.float32 else torch.float32)


def judge(exact_V: Tensor, low_V: Tensor, position: int, plain: int | None, other: int | None) -> Mismatch:
    """The verdict on two tokens (None for the end of a run), by the logits of both replays."""
    ordered_V, order_V = exact_V.sort(descending=True, stable=True)
    leading_K, leaders_K = ordered_V[:CANDIDATES], order_V[:CANDIDATES]
    (best, second), (top1, top2) = leading_K[:2].tolist(), leaders_K[:2].tolist()
    disputed = [token for token in (plain, other) if token is not None]
    logits = exact_V[disputed].tolist()
    unit = max(spacing(logit, low_V.dtype) for logit in logits)
    rounding = ROUNDINGS * float((low_V[leaders_K].to(exact_V.dtype) - leading_K).abs().max())
    gap = abs(logits[0] - logits[1]) if len(logits) == 2 else None
    below = best - min(logits) if set(disputed) <= set(leaders_K.tolist()) else math.inf
    kind = name(gap, below, ROUNDINGS * unit, rounding)
    return Mismatch(position, plain, other, kind, best - second, gap, top1, top2, unit, rounding)


def name(gap: float | None, below: float, tie: float, rounding: float) -> Kind:
    """What a mismatch is, by both tokens' gap, the lesser one's distance to the likeliest, and the bounds."""
    if gap is None or not below <= max(tie, rounding) < math.inf:  # false, too, where a logit is no number
        return "bug"
    return "tie-flip" if gap <= tie else "drift"


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, the shorter length where one is a prefix; None if equal."""
    for position, (left, right) in enumerate(zip(plain, other, strict=False)):
        if left != right:
            return position
    return None if len(plain) == len(other) else min(len(plain), len(other))


def at(tokens: Sequence[int], position: int) -> int | None:
    """The token at a position, None behind the end."""
    return tokens[position] if position < len(tokens) else None


def spacing(value: float, dtype: torch.dtype) -> float:
    """Distance between neighbouring numbers of a type at the magnitude of a value."""
    info = torch.finfo(dtype)
    magnitude = min(max(info.tiny, abs(value)), info.max)
    return info.eps * 2.0 ** math.floor(math.log2(magnitude))
