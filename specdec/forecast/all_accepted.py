"""PEARL's schedule: the whole window is accepted, and the drafter goes on.

B rows, N nodes, M = N + 1, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec import tree
from specdec.exit import Exit
from specdec.forecast.draft_topk import looked
from specdec.hypotheses import Candidates, Hypotheses
from specdec.types import Draft


@dataclass(frozen=True)
class AllAccepted:
    """One outcome: every token of the main path, and the drafter's own next token (PEARL, arXiv 2408.11850)."""

    reads_drafter = True

    @property
    def exit(self) -> Exit | None:
        """It reads the drafter alone."""
        return None

    def __call__(self, window: Draft, own_BMV: Tensor | None, early: Candidates | None) -> Hypotheses:
        """Own log-probabilities [B, M, V] of the drafter to one outcome per row. ValueError without them."""
        first_BN = (tree.ranks(window.parents) == 0) & (window.parents != tree.PAD)
        _, _, end_B = tree.deepest(window.ancestors, window.depths, first_BN)
        likeliest_BM = looked(own_BMV).argmax(-1)
        return Hypotheses(end_B[:, None] - 1, likeliest_BM.gather(1, end_B[:, None]))
