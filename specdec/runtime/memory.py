"""A cache and what it holds, so that whoever asks about other tokens finds out how much is common.

B rows, S token slots, N draft nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.kernels import here
from specdec.runtime.cache import KVCache
from specdec.runtime.feed import Hanging


@dataclass(eq=False)
class Memory:
    """A cache, and the tokens it holds: of each row of ``tokens`` [B, S] the first ``lengths`` [B].

    ``follows`` says whether the rows of this generation have been read, so that it lacks few of their tokens.
    """

    cache: KVCache
    tokens: Tensor
    lengths: Tensor
    follows: bool = False

    @classmethod
    def empty(cls, rows: int, slots: int, device: torch.device, margin: int = 0) -> Memory:
        nothing_BS = torch.zeros(rows, slots, dtype=torch.int64, device=device)
        return cls(KVCache(rows, slots + margin), nothing_BS, torch.zeros(rows, dtype=torch.int64, device=device))

    def hold(self, tokens_BS: Tensor, lengths_B: Tensor) -> None:
        """Note what the cache holds now, in place: what reads these tensors later need not be told."""
        if tokens_BS.shape[1] > self.tokens.shape[1]:
            self.tokens = pad(self.tokens, (0, tokens_BS.shape[1] - self.tokens.shape[1]))
        self.tokens[:, : tokens_BS.shape[1]] = tokens_BS
        self.lengths.copy_(lengths_B)

    def extend(self, chain: Hanging) -> None:
        """Note the nodes of a tree that lie in the cache as committed tokens would: a chain from its first on."""
        index_N = torch.arange(chain.size, device=chain.tokens.device)
        straight_BN = (chain.parents == index_N - 1).cumprod(1)
        slot_S = torch.arange(self.tokens.shape[1], device=chain.tokens.device)
        node_BS = slot_S - chain.lengths[:, None]
        there_BS = (node_BS >= 0) & (node_BS < chain.size)
        self.tokens.copy_(
            torch.where(there_BS, chain.tokens.gather(1, node_BS.clamp(0, chain.size - 1)), self.tokens)
        )
        self.lengths.copy_((chain.lengths + straight_BN.sum(1)).clamp(max=len(slot_S)))

    def roll_back(self, tokens_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """Hold no more than what is common with the rows; int64 [B], how much of all but their last token."""
        if here(tokens_BS):
            from specdec.kernels.rows import rolled_back

            return rolled_back(self.tokens, self.lengths, tokens_BS, lengths_B)
        self.lengths.copy_(self.common(tokens_BS, lengths_B))
        return torch.minimum(self.lengths, lengths_B - 1)

    def common(self, tokens_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """int64 [B]: how much of the given rows is held."""
        width = min(tokens_BS.shape[1], self.tokens.shape[1])
        limit_B = torch.minimum(self.lengths, lengths_B)
        same_BS = self.tokens[:, :width] == tokens_BS[:, :width]
        same_BS &= torch.arange(width, device=tokens_BS.device) < limit_B[:, None]
        return same_BS.cumprod(1).sum(1)
