"""When a chain ends before its length: where the drafter does not trust its own token.

A token that was drawn stays in the draft, whatever is thought of it: were it dropped by its value, the law it was
drawn from would no longer be its law. So the chain ends *behind* the token that is not trusted, and whether it
goes on depends on nothing but the tokens up to there.

B rows, X roots per row, V target vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Confidence(Protocol):
    """Says whether a chain goes on behind a token."""

    def __call__(self, law_BXV: Tensor, token_BX: Tensor) -> Tensor:
        """bool [B, X], given the law that each token is from; a greedy token's is the model's at temperature 1."""
        ...


@dataclass(frozen=True)
class TokenProbability:
    """Go on while the drafter gave its token a probability of ``least`` or more.

    Hugging Face's ``assistant_confidence_threshold``; SpecDec++ (arXiv 2405.19715) and DISCO (arXiv 2405.04304)
    train a classifier to say it better.

    Raises:
        ValueError: ``least`` is no probability.
    """

    least: float

    def __post_init__(self) -> None:
        _check_least(self.least)

    def __call__(self, law_BXV: Tensor, token_BX: Tensor) -> Tensor:
        """See ``Confidence``."""
        return law_BXV.gather(-1, token_BX[..., None])[..., 0] >= self.least


@dataclass(frozen=True)
class EntropyBound:
    """Go on while a lower bound on the chance of acceptance, 1 - sqrt(scale H), is ``least`` or more.

    AdaEDL (arXiv 2410.18351), with a threshold that stays: H is the entropy in nats of the law that the token is
    from, and ``scale`` stands for how far the target's law is from it. The paper takes 0.2.

    Raises:
        ValueError: ``least`` is no probability, or ``scale`` is negative.
    """

    least: float
    scale: float = 0.2

    def __post_init__(self) -> None:
        _check_least(self.least)
        if not self.scale >= 0:
            raise ValueError(f"scale must be at least 0, not {self.scale!r}: the paper takes 0.2")

    def __call__(self, law_BXV: Tensor, token_BX: Tensor) -> Tensor:
        """See ``Confidence``."""
        entropy_BX = torch.special.entr(law_BXV).sum(-1)
        return 1 - (self.scale * entropy_BX).sqrt() >= self.least


def _check_least(least: float) -> None:
    if not 0 <= least <= 1:
        raise ValueError(f"a drafter's confidence must be a probability in [0, 1], not {least!r}")
