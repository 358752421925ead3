"""Fixed trees of ranks: which of a token's likeliest successors to propose, and how deep."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from drafters.window import check_length

SHARE = 0.61  # of the likeliest token: 6 / pi^2, where chances fall with the square of the rank

Way = tuple[int, ...]  # the ranks from the root to a node


@dataclass(frozen=True)
class RankTree:
    """A tree whose nodes are told by their ranks among their siblings, level by level.

    Attributes:
        parents: the parent of each node, -1 for the root's children.
        ranks: of each node, 0 for the likeliest.
        widths: nodes of each level.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def likeliest(cls, nodes: int, top: int, levels: int) -> RankTree:
        """The nodes that are likeliest to be reached if rank r is right with a chance of SHARE / (r + 1)^2.

        A node's chance is the product of those on its way (as in Sequoia, arXiv 2402.12374, whose chances are
        measured); ties go to the lower ranks.

        Args:
            nodes: most nodes.
            top: ranks at every node.
            levels: most levels.

        Raises:
            ValueError: one of them is below 1.
        """
        if nodes < 1 or top < 1:
            raise ValueError(f"nodes and top must be at least 1, not {nodes} and {top}")
        check_length(levels)
        open_ways: list[tuple[float, Way]] = [(-SHARE, (0,))]
        chosen: list[Way] = []
        while open_ways and len(chosen) < nodes:
            chance, way = heappop(open_ways)
            chosen.append(way)
            if way[-1] + 1 < top:
                rank = way[-1] + 1
                heappush(open_ways, (chance * (rank / (rank + 1)) ** 2, (*way[:-1], rank)))
            if len(way) < levels:
                heappush(open_ways, (chance * SHARE, (*way, 0)))
        return cls._of(chosen)

    @classmethod
    def _of(cls, ways: list[Way]) -> RankTree:
        ways = sorted(ways, key=lambda way: (len(way), way))
        place: dict[Way, int] = {(): -1, **{way: index for index, way in enumerate(ways)}}
        depths = [len(way) for way in ways]
        return cls(
            parents=tuple(place[way[:-1]] for way in ways),
            ranks=tuple(way[-1] for way in ways),
            widths=tuple(depths.count(depth) for depth in range(1, depths[-1] + 1)),
        )

    @property
    def size(self) -> int:
        """N."""
        return len(self.parents)

    @property
    def fanout(self) -> int:
        """Most children of a node."""
        return max(self.ranks) + 1
