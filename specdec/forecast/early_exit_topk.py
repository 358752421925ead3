"""Mirror's schedule: every accepted length with the likeliest tokens of the target's own early exit.

B rows, M = N + 1 places (the last committed token, then the nodes), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec.exit import Exit
from specdec.forecast.draft_topk import check_counts
from specdec.hypotheses import Candidates, Hypotheses
from specdec.types import Draft

RAW = Exit()  # half of the layers, read out by the target's own norm and head


@dataclass(frozen=True)
class EarlyExitTopK:
    """Mirror Speculative Decoding (arXiv 2510.13161): the early exit's top tokens at all places of the window.

    Attributes:
        exit: where the target speaks early, and how many tokens it names per place.
        branches: outcomes to prepare, the ones of the largest chance; None takes all.

    Raises:
        ValueError: a number below 1.
    """

    exit: Exit = RAW
    branches: int | None = 16

    def __post_init__(self) -> None:
        check_counts(self.exit.top, self.branches)

    @property
    def reads_drafter(self) -> bool:
        """It reads the target alone."""
        return False

    def __call__(self, window: Draft, own_BMV: Tensor | None, early: Candidates | None) -> Hypotheses:
        """The early message to outcomes. Raises ValueError without one."""
        return Hypotheses.likeliest(spoken(early), window, self.branches)


def spoken(early: Candidates | None) -> Candidates:
    """The early message. Raises ValueError where there is none."""
    if early is None:
        raise ValueError("this forecast reads the target's early exit, which has not spoken")
    return early
