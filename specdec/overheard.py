"""An acceptance rule with a listener.

B rows, M = N + 1 (the last committed token, then the nodes), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from specdec.noise import Noise
from specdec.protocols import AcceptanceRule
from specdec.types import Draft, Verdict


@dataclass(frozen=True)
class Overheard:
    """Decides as its rule does, and lets a listener see the target's law beside the verdict.

    Attributes:
        rule: decides.
        listener: takes the law [B, M, V] and the verdict.
    """

    rule: AcceptanceRule
    listener: Callable[[Tensor, Verdict], None]

    @property
    def lossless(self) -> bool:
        """The rule's."""
        return self.rule.lossless

    @property
    def coupled(self) -> bool:
        """The rule's."""
        return self.rule.coupled

    @property
    def weighs(self) -> bool:
        """The rule's."""
        return self.rule.weighs

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """What the rule decides."""
        verdict = self.rule(draft, law_BMV, noise)
        self.listener(law_BMV, verdict)
        return verdict
