"""What one verification did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec.sequences import Sequences
from specdec.types import Advice


@dataclass(frozen=True)
class Turn:
    """What one verification did.

    Attributes:
        seq: the rows after it.
        advice: what the drafter wanted to see of the target, along the accepted path.
        early: [B, M, hidden], the states of the window behind the early exit, None without one.
        report: int64 [B, ...], all that was decided; see ``specdec.trace.report``.
    """

    seq: Sequences
    advice: Advice | None
    early: Tensor | None
    report: Tensor
