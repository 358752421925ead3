"""Typical acceptance: lossy. B rows, N nodes, M = N + 1, D depth slots, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdec import tree
from specdec.noise import Noise
from specdec.types import Draft, Verdict


@dataclass(frozen=True)
class Typical:
    """Accept x if p(x) > min(epsilon, delta * exp(-H(p))); the longest accepted path wins. Lossy.

    Medusa, Cai et al., arXiv 2401.10774. The output follows no law that the target defines: every report
    that uses this rule says so. The token after the path is drawn from the target's law.

    Args:
        epsilon: threshold in probability.
        delta: threshold relative to the entropy of the target's law.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    lossless = False
    coupled = False
    weighs = False

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """Row m of ``law_BMV`` is p after the last committed token (m = 0) or after node m - 1."""
        entropy_BM = -(law_BMV * law_BMV.clamp(min=1e-30).log()).sum(-1)
        threshold_BM = (self.delta * (-entropy_BM).exp()).clamp(max=self.epsilon)
        parent_BN = draft.parents.clamp(min=-1) + 1
        p_BNV = law_BMV.gather(1, parent_BN[..., None].expand(-1, -1, law_BMV.shape[-1]))
        p_BN = p_BNV.gather(-1, draft.tokens[..., None])[..., 0]
        chosen_BN = (p_BN > threshold_BM.gather(1, parent_BN)) & (draft.parents != tree.PAD)
        path_BD, accepted_B, end_B = tree.deepest(draft.ancestors, draft.depths, chosen_BN)
        end_B11 = end_B[:, None, None].expand(-1, 1, law_BMV.shape[-1])
        tokens_B1 = noise.draw(law_BMV.gather(1, end_B11), draft.positions.gather(1, end_B[:, None]))
        return Verdict(path_BD, accepted_B, tokens_B1[:, 0])
