"""Token trees as parent pointers. B rows, N nodes, M = N + 1 (root first), R siblings, D depth slots."""

from __future__ import annotations

import torch
from torch import Tensor

ROOT = -1
PAD = -2


def ancestors(parents_BN: Tensor, fanout: int | None = None) -> Tensor:
    """bool [B, N, N]: entry (n, m) says that m is n itself or an ancestor of n; padding has only itself.

    ``fanout`` is 1 where the rows are known to be chains.
    """
    size = parents_BN.shape[1]
    index_N = torch.arange(size, device=parents_BN.device)
    if fanout == 1:
        before_NN = index_N < index_N[:, None]
        return (before_NN & (parents_BN != PAD)[..., None]) | (index_N == index_N[:, None])
    reach_BNN = (index_N == index_N[:, None]) | (index_N == parents_BN[..., None])
    hops = 1
    while hops < size:  # each squaring doubles the number of generations that are seen
        reach_BNN = (reach_BNN.float() @ reach_BNN.float()) > 0
        hops *= 2
    return reach_BNN


def ranks(parents_BN: Tensor) -> Tensor:
    """int64 [B, N]: how many earlier nodes have the same parent."""
    index_N = torch.arange(parents_BN.shape[1], device=parents_BN.device)
    siblings_BNN = parents_BN[..., None] == parents_BN[:, None]
    return (siblings_BNN & (index_N < index_N[:, None])).sum(-1)


def children(parents_BN: Tensor, fanout: int | None = None) -> Tensor:
    """int64 [B, M, R]: the r-th child of the root (row 0) and of node n (row n + 1), -1 where there is none.

    ``fanout`` is R where it is known; else it is the most that there are.
    """
    rows, size = parents_BN.shape
    if size == 0:
        return parents_BN.new_empty((rows, 1, 0))
    real_BN = parents_BN != PAD
    rank_BN = torch.where(real_BN, ranks(parents_BN), 0)
    fanout = int(rank_BN.max()) + 1 if fanout is None else fanout
    table_BX = parents_BN.new_full((rows, (size + 1) * fanout + 1), -1)
    place_BN = torch.where(real_BN, (parents_BN + 1) * fanout + rank_BN, (size + 1) * fanout)
    index_N = torch.arange(size, device=parents_BN.device)
    table_BX.scatter_(1, place_BN, index_N.expand(rows, -1))
    return table_BX[:, :-1].reshape(rows, size + 1, fanout)


def deepest(ancestors_BNN: Tensor, depths_BN: Tensor, chosen_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The longest path from the root along chosen nodes.

    Returns:
        path int64 [B, D] (node indices, -1 beyond the end), its length int64 [B], and the row of the target
        law at its end, int64 [B] (0 for the root, n + 1 for node n).
    """
    rows, size = chosen_BN.shape
    if size == 0:
        zero_B = depths_BN.new_zeros(rows)
        return depths_BN, zero_B, zero_B
    reached_BN = (chosen_BN[:, None] | ~ancestors_BNN).all(-1)
    length_B, end_B = torch.where(reached_BN, depths_BN, 0).max(1)
    path_BD = path_to(ancestors_BNN, end_B, length_B)
    return path_BD, length_B, torch.where(length_B > 0, end_B + 1, 0)


def path_to(ancestors_BNN: Tensor, end_B: Tensor, length_B: Tensor) -> Tensor:
    """int64 [B, D]: the nodes from the root to ``end_B``, -1 beyond ``length_B``."""
    size = ancestors_BNN.shape[1]
    index_N = torch.arange(size, device=end_B.device)
    on_path_BN = ancestors_BNN.gather(1, end_B[:, None, None].expand(-1, 1, size))[:, 0]
    # A parent stands before its children, so the path in order is the path's nodes sorted by index.
    order_BN = torch.where(on_path_BN, index_N, size).sort(1).values
    return torch.where(index_N < length_B[:, None], order_BN, -1)
