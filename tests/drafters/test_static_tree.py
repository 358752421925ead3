"""A tree of chosen ranks holds the tokens of those ranks, by plain forwards over every path of it."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, VOCABULARY, perturbed, plain_logits, random_prompt

import specdec
from drafters import EarlyExitDrafter, ModelDrafter
from drafters.shape import Shape
from drafters.static_tree import StaticTree
from specdec import Context, Sampling
from specdec.hypotheses import Hypotheses
from specdec.noise import Still
from specdec.runtime import load
from specdec.types import Draft
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
# With a rank left out, a level whose widest node is no first one, and inner nodes that are not neighbours.
PATHS = [[1], [0], [3], [0, 0], [0, 2], [3, 0], [3, 1], [3, 0, 1], [0, 2, 0], [0, 2, 0, 4]]
TREE = StaticTree.of(PATHS)


def context(rows, static=False):
    longest = max(map(len, rows))
    tokens_BS = torch.tensor([[*row, *[0] * (longest + 8 - len(row))] for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    return Context(tokens_BS, lengths_B, torch.full_like(lengths_B, 9), Sampling(), static=static)


def expected(module, row, paths):
    """The tokens of every path, each by a forward over the row and the path's beginning."""
    tokens = {(): ()}
    for path in sorted(map(tuple, paths), key=len):
        above = tokens[path[:-1]]
        order = plain_logits(module, [*row, *above])[-1].argsort(descending=True)
        tokens[path] = (*above, int(order[path[-1]]))
    del tokens[()]
    return sorted(tokens.values())


def drafted(draft, b):
    found = []
    for token, parent in zip(draft.tokens[b].tolist(), draft.parents[b].tolist(), strict=True):
        assert parent < len(found)
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return sorted(found)


def counted(model, monkeypatch):
    """How many tokens each forward of ``grow`` reads."""
    sizes, grow = [], model.grow

    def noted(tokens_BW, *others, **options):
        sizes.append(tokens_BW.shape[1])
        return grow(tokens_BW, *others, **options)

    monkeypatch.setattr(model, "grow", noted)
    return sizes


@pytest.mark.parametrize("name", ["llama", "gemma3-hybrid", "gpt2"])
def test_tokens_are_those_of_the_ranks(name, monkeypatch):
    module = FAMILIES[name]()
    model, shape = load(module).model, Shape.asked(1, tree=PATHS)
    model.begin(len(ROWS), 32)
    sizes = counted(model, monkeypatch)
    for rows in (ROWS, [[*row, 5] for row in ROWS]):  # the second time the cache holds most of it
        draft = shape.draft(model, context(rows), Still(), VOCABULARY)
        assert draft.laws is None and draft.fanout == TREE.fanout and draft.size == shape.size == len(PATHS)
        for b, row in enumerate(rows):
            assert drafted(draft, b) == expected(module, row, PATHS)
    assert sizes == [2, 2, 1] * 2, "one forward per level, of the nodes that have children"


def test_siblings_stand_in_the_order_of_their_ranks():
    """Acceptance visits them in order: the likeliest first."""
    parents = torch.cat([level.parents for level in TREE.levels(torch.device("cpu"))]).tolist()
    assert [TREE.paths[parent] if parent >= 0 else () for parent in parents] == [path[:-1] for path in TREE.paths]
    for above in set(parents):
        ranks = [path[-1] for path, parent in zip(TREE.paths, parents, strict=True) if parent == above]
        assert ranks == sorted(ranks)


def test_behind_every_outcome_it_is_the_same_tree():
    module = FAMILIES["llama"]()
    model, shape = load(module).model, Shape.asked(1, tree=PATHS)
    model.begin(len(ROWS), 64)
    tokens_BN = torch.tensor([[7, 3, 2]]).expand(len(ROWS), -1)
    window = Draft(tokens_BN, torch.tensor([[-1, 0, -1]]).expand_as(tokens_BN), torch.tensor([9, 4, 14]), fanout=2)
    outcomes = Hypotheses(torch.tensor([[-1, 1, 2]] * 3), torch.tensor([[8, 6, 5]] * 3))
    shape.look(model, context(ROWS), window, VOCABULARY)
    draft = shape.branch(model, context(ROWS), window, outcomes, Still(), VOCABULARY)
    for b, row in enumerate(ROWS):
        for x, longer in enumerate(([*row, 8], [*row, 7, 3, 6], [*row, 2, 5])):
            assert drafted(draft, 3 * b + x) == expected(module, longer, PATHS)
            assert int(draft.base[3 * b + x]) == len(longer)


def test_near_the_limit_only_levels_that_fit_are_drafted(monkeypatch):
    module = FAMILIES["llama"]()
    model, shape = load(module).model, Shape.asked(1, tree=PATHS)
    model.begin(len(ROWS), 32)
    sizes = counted(model, monkeypatch)
    near = context(ROWS)
    near = Context(near.tokens, near.lengths, torch.tensor([3, 2, 1]), near.sampling)
    draft = shape.draft(model, near, Still(), VOCABULARY)
    assert drafted(draft, 0) == expected(module, ROWS[0], [path for path in PATHS if len(path) < 3])
    assert sizes == [2]


def test_equals_the_drafter_s_own_tree_of_the_same_shape():
    """A whole top-k tree of two levels is the static tree of all ranks."""
    module = FAMILIES["llama"]()
    drafts = []
    for shape in (Shape(2, 2, None), Shape.asked(1, tree=[[0], [1], [0, 0], [0, 1], [1, 0], [1, 1]])):
        model = load(module).model
        model.begin(len(ROWS), 32)
        drafts.append(shape.draft(model, context(ROWS), Still(), VOCABULARY))
    assert [drafted(drafts[0], b) for b in range(3)] == [drafted(drafts[1], b) for b in range(3)]


def test_sizes_of_a_shape():
    shape, model = Shape.asked(1, tree=PATHS), load(FAMILIES["llama"]()).model
    assert (shape.size, shape.length, shape.fanout, shape.behind(model)) == (10, 4, 3, 5)
    single = StaticTree.of([[2], [2, 0]])
    assert (single.fanout, single.ranks, single.depth) == (1, 3, 2)
    assert StaticTree.of(reversed(PATHS)) == TREE == StaticTree.of(TREE)
    assert hash(StaticTree.of(reversed(PATHS))) == hash(TREE)


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ([], "one path or more"),
        ([[]], "one rank or more"),
        ([[0], [-1]], r"a whole number from 0, not \[-1\]"),
        ([[0], [0.5]], r"not \[0.5\]"),
        ([[0], [1, 0]], r"path \[1, 0\] hangs off \[1\], which is missing"),
        ([[0, 0], [0, 0, 0]], r"hangs off \[0\], which is missing"),
        ([[0], [1], [0]], r"path \[0\] is there twice"),
    ],
)
def test_what_is_no_tree(paths, told):
    with pytest.raises(ValueError, match=told):
        StaticTree.of(paths)


def test_what_does_not_go_together():
    for options in ({"width": 2}, {"nodes": 4}):
        with pytest.raises(ValueError, match=r"a tree has its own width and nodes.*leave the tree out"):
            EarlyExitDrafter(tree=PATHS, **options)
    with pytest.raises(ValueError, match="streams go on with a chain, not with a tree of 10 paths"):
        Shape(1, 1, None, streams=type("Two", (), {"tokens_per_step": 2})(), tree=TREE)
    module = FAMILIES["llama"]()
    drafter = ModelDrafter(module, tree=[[0], [VOCABULARY]])
    with pytest.raises(ValueError, match=f"ranks up to {VOCABULARY}, but there are {VOCABULARY} tokens"):
        specdec.generate(FullVerifier(module), drafter, [1, 2])


def test_more_ranks_commit_more_tokens():
    """What it is for: a second guess is worth something where the first is often wrong."""
    module = FAMILIES["llama"]()
    verifier, rows = FullVerifier(module), []
    for tree in ([[0], [0, 0]], [[0], [1], [2], [0, 0], [0, 1], [1, 0]]):
        drafter = ModelDrafter(perturbed(module, 0.2), tree=tree)
        rows.append(specdec.generate(verifier, drafter, ROWS, max_new_tokens=60))
    assert torch.equal(rows[0].tokens, rows[1].tokens)
    assert rows[1].metrics.mean_accepted_tokens > rows[0].metrics.mean_accepted_tokens + 0.1
