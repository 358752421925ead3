"""The match rule and the coupled rule: accept only the tokens that the target itself draws.

B rows, M = N + 1 (the last committed token, then the nodes), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec.acceptance.follow import follow
from specdec.noise import Noise
from specdec.types import Draft, Verdict


@dataclass(frozen=True)
class Match:
    """Draw the target's token at every node; a child is accepted if it is that token.

    The committed token at a position depends on the prefix and the noise alone, so every drafter and every
    schedule gives the tokens of plain sampling. Acceptance is lower than under ``Ratio``: sum of p(x)q(x)
    against sum of min(p(x), q(x)).
    """

    lossless = True
    coupled = False
    weighs = False

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """Row m of ``law_BMV`` is p after the last committed token (m = 0) or after node m - 1."""
        draw = noise.race if self.coupled else noise.draw
        token_BM = draw(law_BMV, draft.positions)
        return follow(draft, token_BM)


@dataclass(frozen=True)
class Coupled(Match):
    """The match rule with noise that drafter and target share: both run the same exponential race.

    Gumbel coupling, Daliri et al., arXiv 2408.07978. Acceptance is at least sum of p(x)q(x)/max(p(x), q(x))
    over the union, close to the ratio rule's, and the output is token-identical to plain sampling.
    """

    coupled = True
    weighs = True  # drafter and target meet in what both laws allow, by the noise that they share
