"""Trees whose shape is chosen beforehand.

B rows, X roots per row, R = B * X, N nodes, W nodes of one level, P of them with children, K candidates below each
parent, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from drafters.roots import DraftModel, Roots, fit
from specdec import tree
from specdec.types import Draft

Path = tuple[int, ...]


@dataclass(frozen=True)
class StaticTree:
    """A tree of likely tokens by rank: path (0, 2) is the third likeliest token behind the likeliest one.

    The format is that of Medusa's choices (arXiv 2401.10774), and of EAGLE-1's (arXiv 2401.15077).
    ``specdec.planner.likeliest_tree`` finds the best tree of a size (Sequoia, arXiv 2402.12374).

    Attributes:
        paths: one per node, level by level, so that a parent stands before its children, and siblings in the
            order of their ranks.
    """

    paths: tuple[Path, ...]
    _levels: dict[torch.device, tuple[Level, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, paths: StaticTree | Iterable[Sequence[int]]) -> StaticTree:
        """The tree of these paths, in any order.

        Raises:
            ValueError: no paths, one of them twice, or without its beginning, or ranks that are none.
        """
        if isinstance(paths, StaticTree):
            return paths
        given = [tuple(path) for path in paths]
        for path in given:
            if not path or not all(isinstance(rank, int) and rank >= 0 for rank in path):
                raise ValueError(f"a path is one rank or more, each a whole number from 0, not {list(path)}")
        known = set(given)
        if not known:
            raise ValueError("a tree has one path or more, such as [[0], [1], [0, 0]]")
        for path in given:
            if len(path) > 1 and path[:-1] not in known:
                raise ValueError(f"path {list(path)} hangs off {list(path[:-1])}, which is missing: add it")
        if len(known) < len(given):
            twice = next(path for path in given if given.count(path) > 1)
            raise ValueError(f"path {list(twice)} is there twice: leave one out")
        return cls(tuple(sorted(known, key=lambda path: (len(path), path))))

    @property
    def size(self) -> int:
        """N."""
        return len(self.paths)

    @property
    def depth(self) -> int:
        """Levels."""
        return len(self.paths[-1])

    @property
    def ranks(self) -> int:
        """Ranks that are looked at, from 0 on."""
        return 1 + max(path[-1] for path in self.paths)

    @cached_property
    def fanout(self) -> int:
        """Most children of a node, or of the root."""
        above = [path[:-1] for path in self.paths]
        return max(map(above.count, set(above)))

    def levels(self, device: torch.device) -> tuple[Level, ...]:
        """What growing the tree takes, on a device. Made once: a recording cannot make it."""
        if device not in self._levels:
            self._levels[device] = tuple(self._level(depth, device) for depth in range(self.depth))
        return self._levels[device]

    def _level(self, depth: int, device: torch.device) -> Level:
        nodes = [path for path in self.paths if len(path) == depth + 1]
        above = self._parents(depth)
        ranks, inner = 1 + max(path[-1] for path in nodes), self._parents(depth + 1)

        def table(entries: Iterable[int]) -> Tensor:
            return torch.tensor(list(entries), dtype=torch.int64, device=device)

        return Level(
            ranks,
            table(above.index(path[:-1]) * ranks + path[-1] for path in nodes),
            table(self.paths.index(path[:-1]) if depth else tree.ROOT for path in nodes),
            table(nodes.index(path) for path in inner),
            table(above.index(path[:-1]) for path in inner),
        )

    def _parents(self, depth: int) -> list[Path]:
        """Those nodes of so many ranks that have children; the root for none."""
        return sorted({path[:-1] for path in self.paths if len(path) == depth + 1})

    def grow(self, model: DraftModel, roots: Roots, depth: int, vocabulary: int) -> Draft:
        """The first ``depth`` levels behind every root, rows b * X + x, in one forward per level.

        The model reads nodes that have children, and no others. The tokens are chosen, not drawn, so the draft
        carries no laws.
        """
        logits_BXPV, fed_BXP, fed = roots.logits[:, :, None], roots.nodes[..., None], roots.fed
        levels, tokens = self.levels(roots.lengths.device)[:depth], []
        for index, level in enumerate(levels):
            likely_BXPK = logits_BXPV.topk(level.ranks, -1).indices
            tokens.append(likely_BXPK.flatten(2)[..., level.places])
            if index + 1 < len(levels):
                inner_BXP, above_BXP = tokens[-1][..., level.inner], fed_BXP[..., level.above]
                logits_BYV = fit(model.grow(inner_BXP.flatten(1), above_BXP.flatten(1)), vocabulary)
                logits_BXPV = logits_BYV.unflatten(1, inner_BXP.shape[1:])
                size = inner_BXP[0].numel()
                fed_BXP = (fed + torch.arange(size, device=inner_BXP.device)).expand(len(inner_BXP), -1)
                fed_BXP, fed = fed_BXP.unflatten(1, inner_BXP.shape[1:]), fed + size
        model.remember()
        tokens_RN = torch.cat(tokens, 2).flatten(0, 1)
        parents_N = torch.cat([level.parents for level in levels])
        return Draft(tokens_RN, parents_N.expand_as(tokens_RN), roots.lengths.flatten(), fanout=self.fanout)


@dataclass(frozen=True)
class Level:
    """One level of a tree: indices, on a device.

    Attributes:
        ranks: K.
        places: int64 [W], which of the P * K candidates below the level's parents each node is.
        parents: int64 [W], the nodes that they hang off.
        inner: int64 [P'], which of the W nodes have children.
        above: int64 [P'], which of the P parents those hang off.
    """

    ranks: int
    places: Tensor
    parents: Tensor
    inner: Tensor
    above: Tensor
