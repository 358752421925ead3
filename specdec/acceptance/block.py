"""Block verification of a chain.

B rows, N nodes, M = N + 1, D depth slots of the main path, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec import tree
from specdec.acceptance.ratio import row
from specdec.noise import Noise
from specdec.types import Draft, Verdict


@dataclass(frozen=True)
class Block:
    """Accept the longest prefix that the joint law allows, instead of token by token.

    Sun et al., "Block verification accelerates speculative decoding", arXiv 2403.10444: never accepts fewer
    tokens than the ratio rule on average. It verifies one chain. Of a tree it takes the first child of each
    node: nodes left aside for their place, not their value, do not change the law.
    """

    lossless = True
    coupled = False
    weighs = True

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """Row m of ``law_BMV`` is p after the last committed token (m = 0) or after node m - 1."""
        first_BN = (tree.ranks(draft.parents) == 0) & (draft.parents != tree.PAD)
        path_BD, length_B, _ = tree.deepest(draft.ancestors, draft.depths, first_BN)
        p_BMV, q_BDV, x_BD = along(path_BD, draft, law_BMV)
        depth_D = torch.arange(draft.size, device=path_BD.device)
        odds_BD = (p_BMV[:, :-1].gather(-1, x_BD[..., None]) / q_BDV.gather(-1, x_BD[..., None]))[..., 0]
        weight_BM = running_weight(odds_BD)
        excess_BDV = (weight_BM[:, :-1, None] * p_BMV[:, :-1] - q_BDV).clamp(min=0)
        # h_i = Z_i / (Z_i + 1 - w_i) for a prefix of i tokens; the whole chain is kept with chance w.
        z_BM = torch.cat([excess_BDV.sum(-1), torch.zeros_like(weight_BM[:, :1])], 1)[:, 1:]
        rest_BD = z_BM + 1 - weight_BM[:, 1:]
        keep_BD = torch.where(rest_BD > 0, z_BM / rest_BD, 1)
        keep_BD = torch.where(depth_D + 1 == length_B[:, None], weight_BM[:, 1:], keep_BD)
        keep_BD = torch.where(depth_D < length_B[:, None], keep_BD, 0)
        # Every depth is looked at, so its number must not come back next round: keyed by where the draft began.
        kept_DB1 = [noise.accepts(keep_BD[:, d : d + 1], draft.base[:, None], d) for d in range(draft.size)]
        kept_BD = torch.cat([keep_BD[:, :0].bool(), *kept_DB1], 1)
        accepted_B = torch.where(kept_BD, depth_D + 1, 0).amax(1) if draft.size else length_B
        last_B1V = torch.cat([excess_BDV, p_BMV[:, -1:]], 1).gather(1, row(accepted_B, p_BMV))
        whole_B1V = p_BMV.gather(1, row(accepted_B, p_BMV))
        cut_B11 = (accepted_B < length_B)[:, None, None] & (last_B1V.sum(-1, keepdim=True) > 0)
        last_B1V = torch.where(cut_B11, last_B1V, whole_B1V)
        tokens_B1 = noise.draw(last_B1V, (draft.base + accepted_B)[:, None])
        return Verdict(torch.where(depth_D < accepted_B[:, None], path_BD, -1), accepted_B, tokens_B1[:, 0])


def along(path_BD: Tensor, draft: Draft, law_BMV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Target law before each token of the path and after the last, draft law, and the tokens themselves."""
    node_BD = path_BD.clamp(min=0)
    root_B1 = torch.zeros_like(draft.base[:, None])
    p_BMV = law_BMV.gather(1, row(torch.cat([root_B1, node_BD + 1], 1), law_BMV))
    x_BD = draft.tokens.gather(1, node_BD)
    if draft.laws is not None:
        return p_BMV, draft.laws.gather(1, row(node_BD, draft.laws)), x_BD
    return p_BMV, torch.zeros_like(p_BMV[:, :-1]).scatter_(-1, x_BD[..., None], 1), x_BD


def running_weight(odds_BD: Tensor) -> Tensor:
    """[B, M]: w_0 = 1, w_i = min(1, w_{i-1} p_i / q_i)."""
    weight_M = [odds_BD.new_ones(len(odds_BD))]
    for odds_B in odds_BD.unbind(1):
        weight_M.append((weight_M[-1] * odds_B).clamp(max=1))
    return torch.stack(weight_M, 1)
