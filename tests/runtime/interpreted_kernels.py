"""Our kernels against the same in PyTorch; run by ``test_kernels`` with Triton's interpreter on."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from specdec import tree
from specdec.kernels import attention, feeding, linear, rotary
from specdec.kernels.tile import Tile, tile_for
from specdec.runtime.feed import Extent, Hanging, feed
from specdec.runtime.sight import Sight


@pytest.fixture
def kernels():
    return SimpleNamespace(linear=linear, attention=attention, rotary=rotary)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(got, expected):
    return float((got - expected).norm() / expected.norm()) < 1e-5


TILES = {
    "lanes": Tile(16, 32, 4, 2, False),
    "cores": Tile(16, 32, 4, 2, True),
    "slices": Tile(16, 64, 4, 2, True, 4),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("tokens", [1, 3, 5, 17])
@pytest.mark.parametrize("extras", ["", "gain gated residual_MN", "gain bias", "bias residual_MN"])
def test_linear(kernels, tokens, tile, extras):
    size, outputs = 80, 40
    parts = {
        "gain": draw(size, seed=1),
        "bias": draw(outputs, seed=2),
        "residual_MN": draw(tokens, outputs, seed=3),
    }
    options = {name: parts[name] for name in extras.split() if name in parts} | {"gated": "gated" in extras}
    x_MK, weight = draw(tokens, size), draw(2 * outputs if "gated" in extras else outputs, size, seed=4)
    got = kernels.linear.linear(x_MK, weight, epsilon=1e-5, tile=TILES[tile], **options)
    assert near(got, kernels.linear.linear_reference(x_MK, weight, epsilon=1e-5, **options))


def test_linear_takes_rows_that_do_not_lie_side_by_side(kernels):
    x_MK = draw(4, 2, 32)[:, 1]
    assert near(kernels.linear.linear(x_MK, draw(24, 32)), x_MK @ draw(24, 32).T)


def test_many_tokens_go_to_a_library(kernels):
    x_MK, weight, gain = draw(kernels.linear.WIDEST + 1, 32), draw(48, 32), draw(32, seed=1)
    options = {"gain": gain, "epsilon": 1e-5, "gated": True}
    assert near(
        kernels.linear.linear(x_MK, weight, **options), kernels.linear.linear_reference(x_MK, weight, **options)
    )


@pytest.mark.parametrize("tile", ["cores", "slices"])
def test_a_row_s_bits_do_not_depend_on_how_many_go_with_it(kernels, tile):
    # Rows of one block: NumPy, which plays the tensor cores, sums otherwise in products of another shape.
    x_MK, weight = draw(8 if tile == "slices" else 16, 64), draw(32, 64, seed=1)
    whole = kernels.linear.linear(x_MK, weight, tile=TILES[tile])
    for tokens in (1, 3, 8):
        assert torch.equal(kernels.linear.linear(x_MK[:tokens], weight, tile=TILES[tile]), whole[:tokens])


@pytest.mark.parametrize("room", [99 << 10, 163 << 10, 227 << 10], ids=["small", "A100", "Hopper"])
def test_a_tile_fits_into_the_memory_of_a_program_or_is_not_kept_there(kernels, room):
    sizes = [
        (t, n, k, g)
        for t in (1, 2, 4, 5, 16, 64)
        for n in (256, 576, 4096)
        for k in (576, 1536, 12288)
        for g in (0, 1)
    ]
    for tokens, outputs, inputs, gated in sizes:
        tile = tile_for(tokens, outputs, inputs, bool(gated), 2, room)
        held = (tile.outputs * (1 + gated) + max(16, tokens)) * tile.inputs * 2
        assert tile.stages == 1 or held * tile.stages <= room
    assert tile_for(8, 6144, 4096, False, 2, 227 << 10).stages == 4  # what was measured stays


def cache(rows=2, heads=2, slots=200, size=32):
    return draw(rows, heads, slots + 1, size, seed=5), draw(rows, heads, slots + 1, size, seed=6)


def chain_sight(kernels, lengths, width, sliding=None):
    lengths_B = torch.tensor(lengths)
    counts_BW = lengths_B[:, None] + torch.arange(width)
    return Sight(lengths_B, counts_BW, torch.zeros_like(counts_BW), None).within(sliding)


@pytest.mark.parametrize(
    ("width", "groups", "size", "sliding"),
    [
        *itertools.product([1], [3], [32, 24, 8], [None, 40]),
        *itertools.product([4], [1], [32, 24, 8], [None, 40]),
        *zip([9] * 3, [3] * 3, [32, 24, 8], [40, None, 40], strict=True),  # the interpreter takes seconds for each
    ],
)
def test_attention_over_a_chain(kernels, width, groups, size, sliding):
    keys, values = cache(size=size)
    q_MX = draw(2 * width, 2 * groups * size, seed=7)
    for lengths in ([1, 63], [64, 65], [127, 150]):
        sight = chain_sight(kernels, lengths, width, sliding)
        got = kernels.attention.attend(q_MX, keys, values, sight, 0.2)
        assert near(got, kernels.attention.attend_reference(q_MX, keys, values, sight, 0.2))


def test_attention_takes_queries_that_lie_in_a_wider_projection(kernels):
    keys, values = cache()
    q_MX, sight = draw(2 * 3, 3 * 2 * 32, seed=7)[:, : 2 * 32], chain_sight(kernels, [10, 70], 3)
    sight = Sight(sight.lengths, sight.counts.repeat(1, 2)[:, :3], sight.lows.repeat(1, 2)[:, :3], None)
    got = kernels.attention.attend(q_MX, keys, values, sight, 0.2)
    assert got.is_contiguous() and near(got, kernels.attention.attend_reference(q_MX, keys, values, sight, 0.2))


def test_attention_does_not_read_what_lies_behind(kernels):
    keys, values = cache()
    q_MX, sight = draw(2 * 3, 2 * 32, seed=7), chain_sight(kernels, [10, 70], 3)
    before = kernels.attention.attend(q_MX, keys, values, sight, 0.2)
    keys[:, :, 73:], values[:, :, 73:] = 1e4, -1e4
    assert torch.equal(kernels.attention.attend(q_MX, keys, values, sight, 0.2), before)


PATHS = [[], [0], [1], [0, 2], [1, 3], [1, 3, 4]]  # of the last committed token and five nodes


def tree_sight(kernels, lengths, paths=PATHS):
    lengths_B, depth = torch.tensor(lengths), max(map(len, paths))
    order_BWD = torch.tensor([[*path, *[0] * (depth - len(path))] for path in paths]).expand(len(lengths), -1, -1)
    counts_BW = lengths_B[:, None] + torch.tensor([len(path) for path in paths])
    return Sight(lengths_B, counts_BW, torch.zeros_like(counts_BW), order_BWD.contiguous())


@pytest.mark.parametrize("lengths", [[5, 60], [62, 64], [63, 126]])
def test_attention_over_a_tree(kernels, lengths):
    keys, values = cache()
    q_MX, sight = draw(2 * len(PATHS), 2 * 3 * 32, seed=7), tree_sight(kernels, lengths)
    got = kernels.attention.attend(q_MX, keys, values, sight, 0.2)
    assert near(got, kernels.attention.attend_reference(q_MX, keys, values, sight, 0.2))


@pytest.mark.parametrize("length", [20, 62, 63, 64])
def test_a_token_has_the_same_bits_in_a_tree_and_in_a_chain(kernels, length):
    keys, values = cache(rows=1, heads=1)
    q_MX = draw(len(PATHS), 3 * 32, seed=7)
    in_tree = kernels.attention.attend(q_MX, keys, values, tree_sight(kernels, [length]), 0.2)
    wrong = kernels.attention.attend(
        q_MX, keys, values, tree_sight(kernels, [length], [*PATHS[:-1], [0, 3, 4]]), 0.2
    )
    moved = [length + node for node in PATHS[-1]]  # as the path's keys lie once they are committed
    for part in (keys, values):
        part[:, :, length : length + 3] = part[:, :, moved].clone()
    counts_BW = torch.full((1, len(PATHS)), length + 3)
    sight = Sight(torch.tensor([length + 3]), counts_BW, torch.zeros_like(counts_BW), None)
    in_chain = kernels.attention.attend(q_MX, keys, values, sight, 0.2)
    assert torch.equal(in_tree[-1], in_chain[-1])
    assert not torch.equal(wrong[-1], in_chain[-1])


@pytest.mark.parametrize("norms", [False, True])
def test_rotation(kernels, norms):
    size, heads, groups, width = 24, 2, 3, 4
    qkv_MX = draw(2 * width, (heads * groups + 2 * heads) * size)
    tables, gains = draw(2, 300, size, seed=1), draw(2, size, seed=2) if norms else None
    # As cut from wider ones: rows do not lie side by side.
    positions_BW = (torch.tensor([[3], [90]]) + torch.arange(-1, width))[:, 1:]
    slots_BW = torch.tensor([[0, 7, 2, 200, 9], [0, 1, 90, 91, 200]])[:, 1:]
    before = cache(size=size)
    ours, theirs = ([part.clone() for part in before] for _ in range(2))
    place = (qkv_MX, *tables, positions_BW, slots_BW, gains, 1e-5)
    got = kernels.rotary.rotate(*place, *ours, overlap=False)
    assert near(got, kernels.rotary.rotate_reference(*place, *theirs))
    for mine, expected, old in zip(ours, theirs, before, strict=True):
        assert near(mine, expected)
        untouched = torch.ones(2, 201, dtype=torch.bool).scatter(1, slots_BW, False)
        assert torch.equal(mine.transpose(1, 2)[untouched], old.transpose(1, 2)[untouched])


FOREST = [[-1, 0, -1, 1, 3, 2], [-1, -1, -1, -1, 0, 4], [-1, 0, 1, tree.PAD, 2, tree.PAD]]


@pytest.mark.parametrize("pending", [0, 1, 3])
@pytest.mark.parametrize("fed", [0, 2, 5])
@pytest.mark.parametrize("parents", [FOREST, [[-1, 0, 1, 2, 3, 4]] * 3], ids=["trees", "chains"])
def test_the_inputs_of_a_forward(kernels, parents, fed, pending):
    chain, size = parents is not FOREST, len(parents[0])
    lengths_B, held_B = torch.tensor([2, 7, 12]), torch.tensor([1, 6, 10])
    tokens_BS = torch.arange(3 * 16).view(3, 16)
    hanging = Hanging(lengths_B, 100 + torch.arange(3 * size).view(3, size), torch.tensor(parents), chain)
    expected = feed(tokens_BS, held_B, hanging, fed, Extent(pending, 20), brief=True)
    got = feeding.feeding(tokens_BS, held_B, lengths_B, hanging.tokens, hanging.parents, fed, pending, chain)
    assert torch.equal(got.tokens, expected.tokens) and torch.equal(got.slots, expected.slots)
    assert torch.equal(got.positions, expected.positions)
    assert torch.equal(got.counts, expected.sight.counts) and torch.equal(got.lows, expected.sight.lows)
    assert (got.order is None) == (expected.sight.order is None)
    for b, w in [] if chain else [(b, w) for b in range(3) for w in range(pending, pending + size - fed)]:
        depth = int(got.counts[b, w] - lengths_B[b])
        assert depth > 0 and torch.equal(got.order[b, w, :depth], expected.sight.order[b, w, :depth])


def test_parents_in_a_circle_come_to_an_end(kernels):
    one_B, nodes_BN = torch.tensor([3]), torch.tensor([[7, 8, 9]])
    parents_BN = torch.tensor([[-1, 1, 0]])
    got = feeding.feeding(torch.arange(8)[None], one_B, one_B, nodes_BN, parents_BN, 0, 0, False)
    assert got.tokens.tolist() == [[7, 8, 9]] and int(got.positions.max()) < 3 + 3
