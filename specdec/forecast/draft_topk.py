"""SSD's schedule: every accepted length with the drafter's own likeliest tokens.

B rows, M = N + 1 places (the last committed token, then the nodes), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec.exit import Exit
from specdec.hypotheses import Candidates, Hypotheses
from specdec.types import Draft


@dataclass(frozen=True)
class DraftTopK:
    """The drafter's own fan-out at every place of the window (SSD / Saguaro, arXiv 2603.03251).

    Attributes:
        top: tokens per place.
        branches: outcomes to prepare, the ones of the largest chance; None takes all.

    Raises:
        ValueError: a number below 1.
    """

    top: int = 8
    branches: int | None = 16

    def __post_init__(self) -> None:
        check_counts(self.top, self.branches)

    reads_drafter = True

    @property
    def exit(self) -> Exit | None:
        """It reads the drafter alone."""
        return None

    def __call__(self, window: Draft, own_BMV: Tensor | None, early: Candidates | None) -> Hypotheses:
        """Own log-probabilities [B, M, V] of the drafter to outcomes. Raises ValueError without them."""
        return Hypotheses.likeliest(Candidates.top(looked(own_BMV), window, self.top), window, self.branches)


def looked(own_BMV: Tensor | None) -> Tensor:
    """The drafter's own law. Raises ValueError where there is none."""
    if own_BMV is None:
        raise ValueError("this forecast reads the drafter's own law, but the drafter has not looked at the window")
    return own_BMV


def check_counts(top: int, branches: int | None) -> None:
    """Raises ValueError for counts below 1."""
    if top < 1 or (branches is not None and branches < 1):
        raise ValueError(f"top and branches must be at least 1, not {top} and {branches}")
