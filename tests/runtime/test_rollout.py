"""A model drafts what plain forwards over every path of its draft would have it draft."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, VOCABULARY, plain_logits, random_prompt
from torch import Tensor
from transformers import PreTrainedModel

from drafters.rollout import chain, top_k_tree
from drafters.roots import Roots
from drafters.streaming import Successors
from specdec import Context, Draft, Sampling
from specdec.noise import Still
from specdec.runtime import load

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
KINDS = ["llama", "gemma3-hybrid", "gpt2"]


@dataclass(frozen=True)
class Node:
    path: tuple[int, ...]
    score: float


def next_nodes(module: PreTrainedModel, row: list[int], above: Node, width: int) -> list[Node]:
    """The likeliest children of a node, by a forward over its whole path."""
    gain_V = plain_logits(module, [*row, *above.path])[-1].log_softmax(-1)
    best = gain_V.topk(width)
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [Node((*above.path, token), above.score + gain) for gain, token in pairs]


def plain_tree(
    module: PreTrainedModel, row: list[int], depth: int, width: int, nodes: int
) -> set[tuple[int, ...]]:
    """Paths of the likeliest nodes of a tree in which every level's best ``width`` nodes have children."""
    level, found = [Node((), 0.0)], []
    for _ in range(depth):
        children = [child for above in level for child in next_nodes(module, row, above, width)]
        found += children
        level = sorted(children, key=lambda node: -node.score)[:width]
    return {node.path for node in sorted(found, key=lambda node: -node.score)[:nodes]}


def paths(draft: Draft, b: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens[b].tolist(), draft.parents[b].tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def context(rows: list[list[int]]) -> Context:
    longest = max(map(len, rows))
    tokens_BS = torch.tensor([[*row, *[0] * (longest + 8 - len(row))] for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    room_B: Tensor = torch.full_like(lengths_B, 8)
    return Context(tokens_BS, lengths_B, room_B, Sampling())


@pytest.mark.parametrize("nodes", [7, 100])
@pytest.mark.parametrize("name", KINDS)
def test_top_k_tree(name: str, nodes: int) -> None:
    module = FAMILIES[name]()
    model = load(module).model
    model.begin(len(ROWS), 32)
    for rows in (ROWS, [[*row, 5] for row in ROWS]):  # the second time the cache holds most of it
        roots = Roots.committed(model, context(rows), VOCABULARY, behind=5)
        draft = top_k_tree(model, roots, depth=4, width=3, nodes=nodes, vocabulary=VOCABULARY)
        assert draft.laws is None
        for b, row in enumerate(rows):
            drafted = paths(draft, b)
            assert len(set(drafted)) == len(drafted), "a path was drafted twice"
            assert set(drafted) == plain_tree(module, row, depth=4, width=3, nodes=nodes)


@pytest.mark.parametrize("tokens_per_step", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("name", KINDS)
def test_chain(name: str, tokens_per_step: int) -> None:
    module, table_V = FAMILIES[name](), torch.arange(VOCABULARY).roll(5)
    model = load(module).model
    model.begin(len(ROWS), 32)
    streams = Successors.of(table_V, tokens_per_step, "cpu")
    rows = ROWS
    for _ in range(2):  # the second time the cache holds what it read of the chain, and no more
        roots = Roots.committed(model, context(rows), VOCABULARY, behind=2, chain=True)
        draft = chain(model, roots, Still(), length=5, vocabulary=VOCABULARY, streams=streams)
        assert draft.is_chain
        expected = [plain_chain(module, table_V, row, 5, tokens_per_step) for row in rows]
        assert draft.tokens.tolist() == expected
        rows = [[*row, *tokens] for row, tokens in zip(rows, expected, strict=True)]


def plain_chain(module: PreTrainedModel, table_V: Tensor, row: list[int], length: int, step: int) -> list[int]:
    """By a forward over the whole text for every step: its argmax, and behind it what the table says."""
    found: list[int] = []
    while len(found) < length:
        found.append(int(plain_logits(module, [*row, *found])[-1].argmax()))
        for _ in range(min(step - 1, length - len(found))):
            found.append(int(table_V[found[-1]]))
    return found
