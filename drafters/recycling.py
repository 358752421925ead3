"""Token Recycling: what the target once found likely behind a token is proposed behind it the next time.

B rows, M = N + 1 places of a window, N draft nodes, P parents of a level, K candidates below each, V vocabulary,
k successors, X places of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from drafters.static_tree import Level, StaticTree
from drafters.window import check_length
from specdec import tree
from specdec.noise import Noise
from specdec.planner import likeliest_tree
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Top, Tops, Want

UNKNOWN = -1
SHARE = 6 / pi**2  # of the likeliest token, where chances fall with the square of the rank


class RecyclingDrafter:
    """Token Recycling (Luo et al., arXiv 2408.08696).

    Keeps the ``top`` likeliest successors of every token, as the target named them at the last place of a verified
    window where that token stood, accepted or not. A draft is a fixed tree of ranks, read from this table level by
    level: it costs no forward. Behind tokens that were never seen there is nothing.

    All rows share the table. Where a token stands in several places of a round, the last row wins, and in it the
    last node.

    Args:
        nodes: most nodes of a draft, the likeliest if rank r is right with a chance of 0.61 / (r + 1)^2.
        top: k, successors to keep per token.
        levels: how deep a draft may be.
        warm: whether a generation begins with what the ones before it have left, as published; else with nothing,
            so that drafts depend on no reply before.

    Raises:
        ValueError: nodes, top or levels below 1, or (when decoding begins) fewer than ``top`` tokens in all.
    """

    static = True

    def __init__(self, nodes: int = 40, top: int = 8, levels: int = 6, warm: bool = False) -> None:
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        chances = [SHARE / (rank + 1) ** 2 for rank in range(top)]
        self.shape = StaticTree.of(likeliest_tree(chances, nodes, check_length(levels)))
        self.warm = warm
        self.wants: tuple[Want, ...] = (Top(top),)
        self._top = top
        self._adjacency: Adjacency | None = None

    @property
    def identity(self) -> object:
        """What a recording may take it for: it reads and writes one table."""
        return self, self.shape, self._adjacency

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.shape.size

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the last generation, unless it is warm; a table for another target is always new."""
        known = self._adjacency
        if known is None or (known.vocabulary, known.table.device) != (target.vocab_size, seq.tokens.device):
            self._adjacency = Adjacency.empty(target.vocab_size, self._top, self.shape, seq.tokens.device)
        elif not self.warm:
            known.table.fill_(UNKNOWN)

    def draft(self, context: Context, noise: Noise) -> Draft:
        """Learn from the window that was verified last, then read a tree for every row."""
        if self._adjacency is None:
            raise RuntimeError("draft comes after begin")
        if context.advice is not None and context.advice.tops is not None:
            self._adjacency.learn(context.advice.tops)
        root_B1 = context.tokens.gather(1, context.lengths[:, None] - 1)
        tokens_BN, parents_BN = self._adjacency.tree(root_B1)
        return Draft(tokens_BN, parents_BN, context.lengths, fanout=self.shape.fanout)


@dataclass(frozen=True, eq=False)
class Adjacency:
    """What may follow every token.

    Attributes:
        table: int64 [V + 1, k], likeliest first, ``UNKNOWN`` where nothing was seen; the last line is for what is
            not to be kept.
        levels: of the trees that are read from it, on its device.
    """

    table: Tensor
    levels: tuple[Level, ...]

    @classmethod
    def empty(cls, vocabulary: int, top: int, shape: StaticTree, device: torch.device) -> Adjacency:
        """Nothing was seen."""
        return cls(torch.full((vocabulary + 1, top), UNKNOWN, device=device), shape.levels(device))

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.table) - 1

    def learn(self, tops: Tops) -> None:
        """Take over the successors that the target named, the last ones of every token."""
        real_BM = torch.cat([torch.ones_like(tops.tokens[:, :1], dtype=torch.bool), tops.parents != tree.PAD], 1)
        token_X = torch.where(real_BM, tops.tokens, self.vocabulary).flatten()
        index_X = torch.arange(len(token_X), device=token_X.device)
        again_X = ((token_X[:, None] == token_X) & (index_X > index_X[:, None])).any(1)
        # One line per token: what an index that occurs twice leaves behind is not defined on a GPU.
        line_X = torch.where(again_X, self.vocabulary, token_X)
        self.table[line_X] = tops.successors[..., : self.table.shape[1]].flatten(0, 1)

    def tree(self, root_B1: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B, N] each, tokens and parents of the tree below a token; padding where nothing was seen."""
        above_BP, tokens = root_B1, []
        for level in self.levels:
            next_BPK = self.table[above_BP.clamp(min=0), : level.ranks]
            next_BPK = torch.where((above_BP == UNKNOWN)[..., None], UNKNOWN, next_BPK)
            tokens.append(next_BPK.flatten(1)[:, level.places])
            above_BP = tokens[-1][:, level.inner]
        tokens_BN, parents_N = torch.cat(tokens, 1), torch.cat([level.parents for level in self.levels])
        return tokens_BN.clamp(min=0), torch.where(tokens_BN == UNKNOWN, tree.PAD, parents_N)
