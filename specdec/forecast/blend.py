"""Candidates of the target's early exit and of the drafter in one ranking.

B rows, M = N + 1 places (the last committed token, then the nodes), K candidates, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.exit import Exit
from specdec.forecast.draft_topk import check_counts, looked
from specdec.forecast.early_exit_topk import spoken
from specdec.hypotheses import Candidates, Hypotheses, of_window
from specdec.types import Draft

UNNAMED = 1.0  # how much less likely than its last token the exit takes a token that it did not name, in nats


@dataclass(frozen=True)
class Blend:
    """Tokens that either source names, ranked by a weighted mean of both probabilities.

    A mean of log-probabilities prepares for less: there, a drafter that is wrong and sure of it refuses what the
    exit names.

    Attributes:
        exit: where the target speaks early, and how many tokens it names per place. A trained one: blending in a
            raw exit prepares for less than the drafter alone does (docs/drafting-ahead.md).
        top: tokens per place that the drafter names.
        branches: outcomes to prepare, the ones of the largest chance; None takes all.
        weight: of the early exit, 0 to 1; the rest is the drafter's.

    Raises:
        ValueError: a number below 1, or a weight outside 0 to 1.
    """

    exit: Exit
    top: int = 8
    branches: int | None = 16
    weight: float = 0.6

    reads_drafter = True

    def __post_init__(self) -> None:
        check_counts(min(self.top, self.exit.top), self.branches)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, not {self.weight}")

    def __call__(self, window: Draft, own_BMV: Tensor | None, early: Candidates | None) -> Hypotheses:
        """The early message and own log-probabilities [B, M, V] to outcomes. Raises ValueError without either."""
        own_BMV, early = looked(own_BMV), spoken(early)
        own = Candidates.top(own_BMV, window, self.top)
        same_BMKK = own.tokens[..., None] == early.tokens[:, :, None]
        exit_BMK = torch.where(same_BMKK, early.scores[:, :, None], -torch.inf).amax(-1)
        unnamed_BM1 = early.scores.amin(-1, keepdim=True) - UNNAMED
        # A token that both name is ranked once, where the exit names it.
        mixed_own_BMK = self._mix(unnamed_BM1, own.scores).masked_fill(exit_BMK > -torch.inf, -torch.inf)
        mixed_early_BMK = self._mix(early.scores, own_BMV.gather(-1, early.tokens))
        both = Candidates(
            torch.cat([early.tokens, own.tokens], -1),
            torch.cat([mixed_early_BMK, mixed_own_BMK], -1),
            self._mix(early.window, of_window(own_BMV, window)),
        )
        return Hypotheses.likeliest(both, window, self.branches)

    def _mix(self, exit: Tensor, own: Tensor) -> Tensor:
        return torch.logaddexp(exit + log(self.weight), own + log(1 - self.weight))


def log(weight: float) -> float:
    """Its logarithm, minus infinity for 0."""
    return math.log(weight) if weight else -math.inf
