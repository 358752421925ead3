"""Tree helpers against plain Python."""

from __future__ import annotations

import random

import torch

from specdec import Draft, tree


def random_parents(size, rng):
    return [rng.choice([-2, *range(-1, n)]) if n else -1 for n in range(size)]


def mended(parents):
    """Children of padding become padding."""
    for node, parent in enumerate(parents):
        if parent >= 0 and parents[parent] == tree.PAD:
            parents[node] = tree.PAD
    return parents


def ancestors(parents, node):
    line = [node]
    while parents[line[-1]] >= 0:
        line.append(parents[line[-1]])
    return line[::-1]


def test_ancestors_depths_and_children():
    rng = random.Random(0)
    for _ in range(50):
        rows = [mended(random_parents(9, rng)) for _ in range(3)]
        draft = Draft(torch.zeros(3, 9, dtype=torch.int64), torch.tensor(rows), torch.tensor([4, 5, 6]))
        for row, parents in enumerate(rows):
            for node in range(9):
                line = [node] if parents[node] == tree.PAD else ancestors(parents, node)
                assert draft.ancestors[row, node].nonzero().flatten().tolist() == sorted(line)

                assert draft.depths[row, node] == (0 if parents[node] == tree.PAD else len(line))
            for place in range(10):
                expected = [node for node in range(9) if parents[node] == place - 1]
                assert [child for child in draft.children[row, place].tolist() if child >= 0] == expected


def test_ancestors_of_chains():
    parents_BN = torch.tensor([[-1, 0, 1, 2, 3, 4], [-1, 0, 1, tree.PAD, tree.PAD, tree.PAD], [tree.PAD] * 6])
    assert torch.equal(tree.ancestors(parents_BN, fanout=1), tree.ancestors(parents_BN))


def test_deepest_path_of_chosen_nodes():
    parents = torch.tensor([[-1, -1, 0, 1, 3, 4], [-1, 0, 1, -1, -2, -2]])
    draft = Draft(torch.zeros_like(parents), parents, torch.tensor([1, 1]))
    chosen = torch.tensor([[1, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1]]).bool()
    path, length, end = tree.deepest(draft.ancestors, draft.depths, chosen)
    assert path.tolist() == [[0, 2, -1, -1, -1, -1], [-1] * 6]  # node 5 hangs on a node that was not chosen
    assert length.tolist() == [2, 0]
    assert end.tolist() == [3, 0]


def test_chains_are_recognised():
    base = torch.tensor([3, 3])
    assert Draft.chain(torch.zeros(2, 3, dtype=torch.int64), base, torch.tensor([3, 1])).is_chain
    assert not Draft(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[-1, -1]]), base[:1]).is_chain
    assert Draft.empty(base).is_chain
