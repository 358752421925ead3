"""Drafts from token paths: paths that begin alike share their nodes. N nodes of the longest row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from specdec import tree
from specdec.types import Context, Draft


class Trie:
    """A row's draft tree. Siblings differ, a parent stands before its children, what came first is tried first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}

    def add(self, path: Iterable[int]) -> None:
        """A path from the root."""
        node = tree.ROOT
        for token in path:
            if (node, token) not in self._nodes:
                self._nodes[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = self._nodes[node, token]

    @classmethod
    def verified(cls, tokens: Sequence[int], parents: Sequence[int]) -> Trie:
        """The tree of a window, by its nodes as they stand there; its padding leads nowhere."""
        made = cls()
        made.tokens, made.parents = list(tokens), list(parents)
        made._nodes = {pair: node for node, pair in reversed([*enumerate(zip(parents, tokens, strict=True))])}
        return made

    def find(self, path: Iterable[int]) -> int | None:
        """The node at the end of a path, None where it is not in the tree; ``tree.ROOT`` for no token."""
        node: int | None = tree.ROOT
        for token in path:
            node = None if node is None else self._nodes.get((node, token))
        return node


def drafted(tries: Sequence[Trie], context: Context) -> Draft:
    """A tree per row. Its tokens were not drawn from a law, so they carry none."""
    size = max(len(trie.tokens) for trie in tries)
    spare = [size - len(trie.tokens) for trie in tries]
    device = context.lengths.device
    tokens = [[*trie.tokens, *[0] * more] for trie, more in zip(tries, spare, strict=True)]
    parents = [[*trie.parents, *[tree.PAD] * more] for trie, more in zip(tries, spare, strict=True)]
    tokens_BN, parents_BN = (torch.tensor(part, dtype=torch.int64, device=device) for part in (tokens, parents))
    return Draft(tokens_BN, parents_BN, context.lengths)
