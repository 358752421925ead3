"""A cached model answers what the network would answer without any cache, whatever was asked before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from families import (
    ALTERNATING,
    FAMILIES,
    LAYERS,
    WINDOW,
    gemma3_with_vision,
    perturbed,
    plain_greedy,
    plain_logits,
    random_prompt,
)
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from drafters import EarlyExitDrafter, ModelDrafter
from specdec import tree
from specdec.runtime import CachedModel, load
from specdec.runtime.cache import KVCache
from verifiers import FullVerifier

SLOTS = 40
ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
NODES = [random_prompt(6, seed=4), random_prompt(6, seed=5), random_prompt(6, seed=6)]
# By levels, two nodes each, so that the same trees can be grown; the last one is a chain with a stray node.
PARENTS = [[-1, -1, 0, 0, 2, 3], [-1, -1, 1, 0, 3, 3], [-1, tree.PAD, 0, tree.PAD, 2, tree.PAD]]
KINDS = ["llama", "mistral-sliding", "gemma3-hybrid", "gpt2", "opt"]


@pytest.fixture(params=KINDS)
def module(request: pytest.FixtureRequest) -> PreTrainedModel:
    return FAMILIES[request.param]()


@pytest.fixture
def llama() -> PreTrainedModel:
    return FAMILIES["llama"]()


def cached(module: PreTrainedModel, slots: int = SLOTS) -> CachedModel:
    model = load(module).model
    model.begin(len(ROWS), slots)
    return model


def batch(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded tokens [B, S] and lengths [B]."""
    tokens_BS = torch.tensor([[*row, *[0] * (SLOTS - len(row))] for row in rows])
    return tokens_BS, torch.tensor([len(row) for row in rows])


def nodes(parents: list[list[int]] = PARENTS) -> tuple[Tensor, Tensor]:
    return torch.tensor(NODES), torch.tensor(parents)


def path_to(node: int, parents: list[int], tokens: list[int]) -> list[int]:
    """Tokens from the root to a node."""
    return [] if node < 0 else [*path_to(parents[node], parents, tokens), tokens[node]]


def assert_scores(
    logits_BMV: Tensor, module: PreTrainedModel, rows: list[list[int]], parents: list[list[int]]
) -> None:
    """Every row of logits is that of a plain forward over its own path."""
    for b, row in enumerate(rows):
        real = [-1, *(n for n, parent in enumerate(parents[b]) if parent != tree.PAD)]
        for node in real:
            plain_V = plain_logits(module, row + path_to(node, parents[b], NODES[b]))[-1]
            torch.testing.assert_close(logits_BMV[b, node + 1], plain_V, rtol=1e-4, atol=1e-4)


NO_TREE: list[list[int]] = [[] for _ in ROWS]


def watch(module: PreTrainedModel) -> list[int]:
    """Fills with the number of tokens that each forward over our cache is fed."""
    widths: list[int] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if "window" in kwargs:
            widths.append(kwargs["input_ids"].shape[1])

    module.register_forward_pre_hook(note, with_kwargs=True)
    return widths


class TestAdvance:
    def test_over_prompt_and_tree_at_once(self, module: PreTrainedModel) -> None:
        scores = cached(module).advance(*batch(ROWS), nodes())
        assert_scores(scores.logits, module, ROWS, PARENTS)

    def test_over_prompt_then_tree(self, module: PreTrainedModel) -> None:
        model, widths = cached(module), watch(module)
        assert_scores(model.advance(*batch(ROWS)).logits, module, ROWS, NO_TREE)
        assert_scores(model.advance(*batch(ROWS), nodes()).logits, module, ROWS, PARENTS)
        assert widths[-1] == 1 + len(PARENTS[0])

    def test_over_rows_of_one_length(self, module: PreTrainedModel) -> None:
        rows = [row[:4] for row in ROWS]
        assert_scores(cached(module).advance(*batch(rows), nodes()).logits, module, rows, PARENTS)
        model = cached(module)
        assert_scores(model.advance(*batch(rows)).logits, module, rows, NO_TREE)
        assert_scores(model.advance(*batch(rows), nodes()).logits, module, rows, PARENTS)

    def test_token_by_token(self, module: PreTrainedModel) -> None:
        model, widths = cached(module), watch(module)
        for length in range(1, 15):
            rows = [row[:length] for row in ROWS]
            scores = model.advance(*batch(rows))
        assert_scores(scores.logits, module, ROWS, NO_TREE)
        assert max(widths) == 1

    def test_a_row_that_stands_still_is_not_fed_again(self, llama: PreTrainedModel) -> None:
        model, widths = cached(llama), watch(llama)
        model.advance(*batch(ROWS))
        longer = [ROWS[0], [*ROWS[1], 7, 8, 9], ROWS[2]]
        assert_scores(model.advance(*batch(longer)).logits, llama, longer, NO_TREE)
        assert widths[-1] == 3

    def test_logits_do_not_depend_on_what_padding_holds(self, llama: PreTrainedModel) -> None:
        tokens_BN, parents_BN = nodes()
        first = cached(llama).advance(*batch(ROWS), (tokens_BN, parents_BN)).logits
        second = (
            cached(llama).advance(*batch(ROWS), (tokens_BN.where(parents_BN != tree.PAD, 99), parents_BN)).logits
        )
        real_BM = torch.nn.functional.pad(parents_BN, (1, 0), value=-1) != tree.PAD
        assert torch.equal(first[real_BM], second[real_BM])


@pytest.mark.parametrize("at_once", [True, False])
def test_a_tree_may_be_deeper_than_the_sliding_window(at_once: bool) -> None:
    module = FAMILIES["mistral-sliding"]()
    model, tokens = load(module).model, random_prompt(2 * WINDOW + 8, seed=7)
    model.begin(1, SLOTS)
    # Two branches, node by node in turns: their slots run away from their positions.
    parents = [-1, -1, *range(len(tokens) - 2)]
    tree_BN = torch.tensor([tokens]), torch.tensor([parents])
    row_BS, lengths_B = batch(ROWS[:1])
    if at_once:
        logits_MV = model.advance(row_BS, lengths_B, tree_BN).logits[0]
    else:
        first, grown = model.advance(row_BS, lengths_B).logits, model.grow(*tree_BN)
        logits_MV = torch.cat([first, grown], 1)[0]
    for node in (-1, 2, len(tokens) - 2, len(tokens) - 1):
        plain_V = plain_logits(module, ROWS[0] + path_to(node, parents, tokens))[-1]
        torch.testing.assert_close(logits_MV[node + 1], plain_V, rtol=1e-4, atol=1e-4)


class TestGrow:
    def test_level_by_level_equals_the_whole_tree_at_once(self, module: PreTrainedModel) -> None:
        model = cached(module)
        tokens_BN, parents_BN = nodes()
        levels = [model.advance(*batch(ROWS)).logits]
        levels += [model.grow(tokens_BN[:, n : n + 2], parents_BN[:, n : n + 2]) for n in (0, 2, 4)]
        assert_scores(torch.cat(levels, 1), module, ROWS, PARENTS)

    def test_on_top_of_a_tree(self, llama: PreTrainedModel) -> None:
        model = cached(llama)
        tokens_BN, parents_BN = nodes()
        scores = model.advance(*batch(ROWS), (tokens_BN[:, :4], parents_BN[:, :4]))
        grown_BWV = model.grow(tokens_BN[:, 4:], parents_BN[:, 4:])
        assert_scores(torch.cat([scores.logits, grown_BWV], 1), llama, ROWS, PARENTS)

    @pytest.mark.parametrize("parents", [[-1, 0, 1, 2, 3, 4], [-1, -1, 1, 0, 2, 1]], ids=["chain", "tree"])
    def test_node_by_node_in_a_single_row(self, module: PreTrainedModel, parents: list[int]) -> None:
        model = load(module).model
        model.begin(1, SLOTS)
        tokens_BN, parents_BN = torch.tensor(NODES[:1]), torch.tensor([parents])
        tokens_BS, lengths_B = batch(ROWS[:1])
        steps = [model.advance(tokens_BS, lengths_B).logits]
        steps += [model.grow(tokens_BN[:, [n]], parents_BN[:, [n]]) for n in range(6)]
        assert_scores(torch.cat(steps, 1), module, ROWS[:1], parents_BN.tolist())

    def test_leaves_the_committed_tokens_alone(self, llama: PreTrainedModel) -> None:
        model, widths = cached(llama), watch(llama)
        model.advance(*batch(ROWS))
        model.grow(*nodes())
        assert_scores(model.advance(*batch(ROWS), nodes()).logits, llama, ROWS, PARENTS)
        assert widths[-1] == 1 + len(PARENTS[0])

    def test_needs_an_advance(self, llama: PreTrainedModel) -> None:
        with pytest.raises(RuntimeError, match="after advance"):
            cached(llama).grow(*nodes())


class TestKeep:
    # A branch that is not the first (its rows must be gathered), nothing, a chain in every other slot.
    PATHS = ((1, 2, 5), (), (0, 2, 4))
    BRANCHES = ([-1, -1, 1, 0, 3, 2], PARENTS[1], PARENTS[2])

    def kept(self, model: CachedModel, cut: int | None = None) -> list[list[int]]:
        """The rows after the paths were kept, of which each commits ``cut`` at most, then one more token."""
        paths = [list(path) for path in self.PATHS]
        model.advance(*batch(ROWS), nodes(list(self.BRANCHES)))
        rows = [[*row, *[NODES[b][n] for n in paths[b]][:cut]] for b, row in enumerate(ROWS)]
        rows = [row if cut and len(paths[b]) > cut else [*row, 77] for b, row in enumerate(rows)]
        path_BD = torch.tensor([[*path, *[-1] * (3 - len(path))] for path in paths])
        model.keep(path_BD, torch.tensor([len(path) for path in paths]), *batch(rows))
        return rows

    def test_a_branch_that_is_not_the_first(self, module: PreTrainedModel) -> None:
        model, widths = cached(module), watch(module)
        rows = self.kept(model)
        assert model.memory.lengths.tolist() == [len(row) - 1 for row in rows]
        assert_scores(model.advance(*batch(rows), nodes()).logits, module, rows, PARENTS)
        assert widths[-1] == 1 + len(PARENTS[0]), "kept tokens were computed again"

    def test_a_path_that_an_end_token_cuts_short(self, module: PreTrainedModel) -> None:
        model = cached(module)
        rows = self.kept(model, cut=1)
        assert model.memory.lengths.tolist() == [len(rows[0]), len(rows[1]) - 1, len(rows[2])]
        assert_scores(model.advance(*batch(rows), nodes()).logits, module, rows, PARENTS)

    def test_many_rounds_equal_a_fresh_forward(self, module: PreTrainedModel) -> None:
        model, rows = cached(module), [list(row) for row in ROWS]
        for step in range(4):
            model.advance(*batch(rows), nodes(list(self.BRANCHES)))
            taken = [path if (step + b) % 2 else path[:1] for b, path in enumerate(self.PATHS)]
            rows = [[*row, *[NODES[b][n] for n in taken[b]], 50 + step] for b, row in enumerate(rows)]
            path_BD = torch.tensor([[*path, *[-1] * (3 - len(path))] for path in taken])
            model.keep(path_BD, torch.tensor([len(path) for path in taken]), *batch(rows))
        assert_scores(model.advance(*batch(rows), nodes()).logits, module, rows, PARENTS)

    def test_needs_an_advance(self, llama: PreTrainedModel) -> None:
        with pytest.raises(RuntimeError, match="after advance"):
            cached(llama).keep(torch.zeros(3, 0), torch.zeros(3), *batch(ROWS))


class TestRollback:
    def test_to_another_continuation_finds_the_common_prefix(self, module: PreTrainedModel) -> None:
        model, widths = cached(module), watch(module)
        model.advance(*batch(ROWS))
        others = [[*row[:-2], 100, 101, 102] for row in ROWS]
        assert_scores(model.advance(*batch(others), nodes()).logits, module, others, PARENTS)
        assert widths[-1] == 3 + len(PARENTS[0])

    def test_rows_roll_back_each_by_itself(self, module: PreTrainedModel) -> None:
        model = cached(module)
        model.advance(*batch(ROWS), nodes())
        others = [[5, *ROWS[0][1:]], [*ROWS[1], 9, 9], ROWS[2][:7]]
        assert_scores(model.advance(*batch(others), nodes()).logits, module, others, PARENTS)
        assert_scores(model.advance(*batch(ROWS), nodes()).logits, module, ROWS, PARENTS)

    def test_to_an_earlier_length_and_back(self, llama: PreTrainedModel) -> None:
        model = cached(llama)
        for rows in (ROWS, [row[:3] for row in ROWS], ROWS):
            assert_scores(model.advance(*batch(rows), nodes()).logits, llama, rows, PARENTS)

    def test_begin_forgets_everything(self, llama: PreTrainedModel) -> None:
        model, widths = cached(llama), watch(llama)
        model.advance(*batch(ROWS))
        model.begin(len(ROWS), SLOTS)
        assert_scores(model.advance(*batch(ROWS)).logits, llama, ROWS, NO_TREE)
        assert widths[0] == widths[1] == 14

    def test_after_a_forward_that_failed_halfway(self, module: PreTrainedModel) -> None:
        model = cached(module)
        model.advance(*batch(ROWS))
        others = [[*row[:2], 100, 101, 102, 103] for row in ROWS]
        fail_once(model.network._layers[2])
        with pytest.raises(ConnectionError):
            model.advance(*batch(others), nodes())
        # Half the layers hold the keys of the other rows now: the ledger must not claim the old ones.
        assert_scores(model.advance(*batch(ROWS), nodes()).logits, module, ROWS, PARENTS)


def fail_once(layer: torch.nn.Module) -> None:
    def fail(*_: Any) -> None:
        handle.remove()
        raise ConnectionError("a layer on another machine")

    handle = layer.register_forward_pre_hook(fail)


class TestCache:
    def test_growing_beyond_its_slots_keeps_what_it_holds(self, module: PreTrainedModel) -> None:
        model, widths = cached(module, slots=14), watch(module)
        model.advance(*batch(ROWS))
        assert_scores(model.advance(*batch(ROWS), nodes()).logits, module, ROWS, PARENTS)
        assert model.memory.cache.slots >= 14 + 6
        assert widths[-1] == 1 + len(PARENTS[0]), "what the cache held was computed again"

    def test_growing_moves_the_padding_slot_out_of_the_way(self) -> None:
        cache = KVCache(rows=1, slots=3)
        new = torch.arange(1.0, 4.0).reshape(1, 1, 3, 1)
        cache.write(0, new, -new, torch.tensor([[0, 1, 2]]), start=0)
        cache.grow(5)
        assert cache.slots >= 5
        assert cache.trash == cache.slots
        keys, values = cache.read(0, 3)
        assert torch.equal(keys, new)
        assert torch.equal(values, -new)

    def test_moving_reads_everything_before_it_writes(self) -> None:
        cache = KVCache(rows=1, slots=4)
        new = torch.arange(4.0).reshape(1, 1, 4, 1)
        cache.write(0, new, new, torch.tensor([[0, 1, 2, 3]]), start=0)
        cache.move(torch.tensor([[1, 2, 3]]), torch.tensor([[0, 1, 2]]))
        assert cache.read(0, 4)[0].flatten().tolist() == [1, 2, 3, 3]

    def test_padding_is_written_where_nobody_reads(self) -> None:
        cache = KVCache(rows=2, slots=2)
        new = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 1, 2, 1)
        cache.write(0, new, new, torch.tensor([[0, 1], [cache.trash, 0]]), start=None)
        assert cache.read(0, 2)[0].flatten(1).tolist() == [[1, 2], [4, 0]]


class TestEarlyExit:
    EXIT = 2

    @pytest.fixture(params=KINDS)
    def pair(self, request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
        """A model, and another that has its first layers only."""
        kinds = {"layer_types": ALTERNATING[: self.EXIT]} if request.param == "gemma3-hybrid" else {}
        return FAMILIES[request.param](), FAMILIES[request.param](num_hidden_layers=self.EXIT, **kinds)

    def test_equals_the_truncated_model(self, pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        module, truncated = pair
        view = cached(module).early_exit(self.EXIT)
        assert_scores(view.advance(*batch(ROWS), nodes()).logits, truncated, ROWS, PARENTS)

    def test_works_between_the_target_s_calls(self, pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
        module, truncated = pair
        model = cached(module)
        view = model.early_exit(self.EXIT)
        widths = watch(view.network.module)
        tokens_BN, parents_BN = nodes()
        rows = ROWS
        for step in range(3):
            assert_scores(model.advance(*batch(rows), nodes()).logits, module, rows, PARENTS)
            path_BD = torch.tensor([[1], [0], [0]])
            rows = [[*row, NODES[b][path_BD[b]], 60 + step] for b, row in enumerate(rows)]
            model.keep(path_BD, torch.ones(3, dtype=torch.int64), *batch(rows))
            held = model.memory.lengths.clone()
            levels = [view.advance(*batch(rows)).logits]
            levels += [view.grow(tokens_BN[:, n : n + 2], parents_BN[:, n : n + 2]) for n in (0, 2, 4)]
            assert_scores(torch.cat(levels, 1), truncated, rows, PARENTS)
            assert torch.equal(model.memory.lengths, held), "the view moved the end of the target's cache"
        assert widths == 3 * [1, 2, 2, 2], "the view computed again what the target's cache held"

    def test_a_view_asked_about_other_rows_spoils_nothing(self, llama: PreTrainedModel) -> None:
        model = cached(llama)
        view = model.early_exit(self.EXIT)
        model.advance(*batch(ROWS))
        for others in ([row[:3] for row in ROWS], [[*row[:2], 100, 101, 102] for row in ROWS]):
            view.advance(*batch(others), nodes())
            assert_scores(model.advance(*batch(ROWS), nodes()).logits, llama, ROWS, PARENTS)

    def test_shares_weights_and_cache(self, llama: PreTrainedModel) -> None:
        model = cached(llama)
        view = model.early_exit(self.EXIT)
        assert view.memory is model.memory
        model.begin(2, SLOTS)
        assert view.memory.cache is model.memory.cache
        mine = {weight.data_ptr() for weight in llama.parameters()}
        assert {weight.data_ptr() for weight in view.network.module.parameters()} < mine

    def test_leaves_the_target_as_it_was(self, module: PreTrainedModel) -> None:
        config, weights = module.config.to_dict(), copy.deepcopy(module.state_dict())
        view = cached(module).early_exit(self.EXIT)
        view.advance(*batch(ROWS), nodes())
        assert view.network.depth == self.EXIT
        assert module.config.to_dict() == config
        assert_same_weights(module.state_dict(), weights)
        assert cached(module).network.depth == LAYERS

    def test_views_of_several_depths_live_together(self, llama: PreTrainedModel) -> None:
        model = cached(llama)
        views = {layers: model.early_exit(layers) for layers in (1, 2, 3)}
        for layers, view in views.items():
            truncated = FAMILIES["llama"](num_hidden_layers=layers)
            assert_scores(view.advance(*batch(ROWS), nodes()).logits, truncated, ROWS, PARENTS)

    @pytest.mark.parametrize("layers", [-1, 0, LAYERS, LAYERS + 1])
    def test_needs_a_layer_that_is_there(self, llama: PreTrainedModel, layers: int) -> None:
        with pytest.raises(ValueError, match=f"exit_layer must be from 1 to {LAYERS - 1}.*not {layers}"):
            cached(llama).early_exit(layers)


def assert_same_weights(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], weight) for name, weight in before.items())


class TestTheModuleItself:
    def test_is_as_it_was_after_a_generation(self, module: PreTrainedModel) -> None:
        config, weights = module.config.to_dict(), copy.deepcopy(module.state_dict())
        implementation, plain = module.config._attn_implementation, plain_greedy(module, ROWS[0], 12)
        drafters = [EarlyExitDrafter(width=2, nodes=4), ModelDrafter(perturbed(module, 0.1))]
        verifier = FullVerifier(module)
        for drafter in drafters:
            specdec.generate(verifier, drafter, ROWS, max_new_tokens=12)
        assert module.config._attn_implementation == implementation
        assert module.config.to_dict() == config
        assert_same_weights(module.state_dict(), weights)
        assert hooks(module) == 0
        assert plain_greedy(module, ROWS[0], 12) == plain

    def test_is_as_it_was_after_a_forward_that_failed(self, module: PreTrainedModel) -> None:
        implementation, plain = module.config._attn_implementation, plain_greedy(module, ROWS[0], 12)
        model = cached(module)
        fail_once(model.network._layers[2])
        with pytest.raises(ConnectionError):
            model.advance(*batch(ROWS))
        assert module.config._attn_implementation == implementation
        assert hooks(module) == 0
        assert plain_greedy(module, ROWS[0], 12) == plain

    def test_may_be_target_and_draft_model_at_once(self, llama: PreTrainedModel) -> None:
        result = specdec.generate(FullVerifier(llama), ModelDrafter(llama, length=3), ROWS, max_new_tokens=12)
        assert result.metrics.faults == {}
        assert [result.row(b) for b in range(3)] == [plain_greedy(llama, row, 12) for row in ROWS]
        assert all(place.accepted == place.tested for place in result.metrics.positions)

    def test_may_have_a_vision_tower_as_deep_as_itself(self) -> None:
        module = gemma3_with_vision()
        assert len(module.model.vision_tower.encoder.layers) == LAYERS
        model = cached(module)
        assert_scores(model.advance(*batch(ROWS), nodes()).logits, module, ROWS, PARENTS)
        drafter = EarlyExitDrafter(exit_layer=3)
        result = specdec.generate(FullVerifier(module), drafter, ROWS, max_new_tokens=12)
        assert result.metrics.faults == {}
        assert [result.row(b) for b in range(3)] == [plain_greedy(module, row, 12) for row in ROWS]


def hooks(module: PreTrainedModel) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_longer_than_the_model_s_positions_are_refused(llama: PreTrainedModel, rows: int) -> None:
    with pytest.raises(ValueError, match=r"300 tokens.*256 positions.*shorten the prompt or lower max_new_tokens"):
        load(llama).model.begin(rows, 300)
