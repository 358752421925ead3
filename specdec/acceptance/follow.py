"""Acceptance where the target's tokens are known: as far as the draft has them.

B rows, N nodes, M = N + 1 (the last committed token, then the nodes), D depth slots.
"""

from __future__ import annotations

from torch import Tensor

from specdec import tree
from specdec.kernels import here
from specdec.types import Draft, Verdict


def follow(draft: Draft, token_BM: Tensor) -> Verdict:
    """Accept children that are the target's own token behind their parent.

    Greedy decoding by any lossless rule: a law with a single token accepts that one, and nothing else.

    Args:
        draft: was admitted.
        token_BM: int64, the target's token after the last committed one (m = 0) or after node m - 1.
    """
    if draft.size and here(token_BM):
        from specdec.kernels.drafts import followed

        return Verdict(*followed(draft.tokens, draft.parents, draft.depths, token_BM))
    wanted_BN = token_BM.gather(1, draft.parents.clamp(min=-1) + 1)
    chosen_BN = (draft.tokens == wanted_BN) & (draft.parents != tree.PAD)
    path_BD, accepted_B, end_B = tree.deepest(draft.ancestors, draft.depths, chosen_BN)
    return Verdict(path_BD, accepted_B, token_BM.gather(1, end_B[:, None])[:, 0])
