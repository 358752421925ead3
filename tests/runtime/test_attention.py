"""Attention over the cache hides what it must, and refuses whatever it would get wrong in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import EXPERTS, FAMILIES, WINDOW, perturbed, plain_greedy, random_prompt, tiny
from torch import Tensor, nn

import specdec
from drafters import EarlyExitDrafter, ModelDrafter, NullDrafter
from specdec.runtime import load
from specdec.runtime.attention import Window, attend
from specdec.runtime.cache import KVCache
from verifiers import FullVerifier


def window(length: int) -> Window:
    """The prefill of one row."""
    slots_BW = torch.arange(length)[None]
    allowed_BWS = torch.ones(1, length, length, dtype=torch.bool).tril()
    return Window(KVCache(1, length), slots_BW, 0, length, allowed_BWS, True, slots_BW, slots_BW)


class Layer(nn.Module):
    """An attention layer, as far as its attention function sees it."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.layer_idx = 0
        for name, value in attributes.items():
            setattr(self, name, value)


def states(length: int, heads: int = 1) -> Tensor:
    return torch.randn(1, heads, length, 4, generator=torch.Generator().manual_seed(length + heads))


class TestMask:
    def test_layers_of_different_sliding_windows_see_differently(self) -> None:
        prefill = window(6)
        masks = [prefill.mask(size, 1) for size in (2, 3, None, 2)]
        seen = [None if mask is None else mask[0, 0, -1].nonzero()[:, 0].tolist() for mask in masks]
        assert seen == [[4, 5], [3, 4, 5], [0, 1, 2, 3, 4, 5], [4, 5]]

    def test_a_sliding_window_counts_positions_not_slots(self) -> None:
        # Two branches after a row of two tokens: slots 2 and 3 hold one position, slot 4 the next.
        slots_BW, position_BW = torch.tensor([[2, 3, 4]]), torch.tensor([[2, 2, 3]])
        allowed_BWS = torch.tensor([[[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]], dtype=torch.bool)
        slot_position_BS = torch.tensor([[0, 1, 2, 2, 3]])
        tree = Window(KVCache(1, 5), slots_BW, 2, 5, allowed_BWS, False, position_BW, slot_position_BS)
        mask = tree.mask(3, 1)
        assert mask is not None
        assert mask[0, 0].int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 1, 0, 1, 1]]

    @pytest.mark.parametrize("sliding", [None, 2])
    def test_query_heads_that_share_a_key_head_are_packed_in_order(self, sliding: int | None) -> None:
        length, prefill = 5, window(5)
        query, key, value = states(length, 6), states(length, 2), states(length + 1, 2)[:, :, 1:]
        attended, _ = attend(Layer(), query, key, value, None, sliding_window=sliding, window=prefill)
        keys, values = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
        mask = prefill.mask(sliding, 1)
        plain = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        torch.testing.assert_close(attended, plain.transpose(1, 2), rtol=1e-5, atol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
    def test_of_arguments_that_change_the_scores(self, name: str) -> None:
        x = states(3)
        with pytest.raises(
            ValueError, match=f"Layer wants {name} in its attention: not supported, choose another"
        ):
            attend(Layer(), x, x, x, None, window=window(3), **{name: 30.0})
        attend(Layer(), x, x, x, None, window=window(3), **{name: None})

    def test_of_a_mask_that_the_layer_made(self) -> None:
        x = states(3)
        with pytest.raises(ValueError, match="Layer wants a mask of its own"):
            attend(Layer(), x, x, x, torch.zeros(1, 1, 3, 3), window=window(3))

    def test_of_a_layer_that_sees_later_tokens(self) -> None:
        x = states(3)
        with pytest.raises(ValueError, match="Layer wants to see later tokens"):
            attend(Layer(is_causal=False), x, x, x, None, window=window(3))

    def test_of_a_layer_that_attends_twice(self) -> None:
        x, prefill = states(3), window(3)
        attend(Layer(), x, x, x, None, window=prefill)
        with pytest.raises(ValueError, match="Layer wants two goes in one layer"):
            attend(Layer(), x, x, x, None, window=prefill)

    def test_of_a_layer_that_skips_tokens(self) -> None:
        x = states(3)
        with pytest.raises(ValueError, match="Layer wants to skip tokens"):
            attend(Layer(), x[:, :, -1:], x, x, None, window=window(3))

    def test_of_a_layer_that_loses_our_arguments(self) -> None:
        x = states(3)
        with pytest.raises(ValueError, match="Layer does not hand keyword arguments on"):
            attend(Layer(), x, x, x, None)

    def test_of_a_model_that_attends_in_a_way_of_its_own(self) -> None:
        module = FAMILIES["llama"]()
        module.model.layers[1].self_attn = Deaf()
        model = load(module).model
        model.begin(1, 8)
        with pytest.raises(
            ValueError, match=r"LlamaForCausalLM has layers that do not use .*: choose another model"
        ):
            model.advance(torch.tensor([[1, 2, 3]]), torch.tensor([3]))


class Deaf(nn.Module):
    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden_states, None


class TestSlidingWindowsThatAreNotHandedOn:
    """Some layers rely on the mask that transformers makes for them, and we ask for none."""

    ROWS = (random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3))

    def test_are_found_where_the_config_says_which_layers_slide(self) -> None:
        experts = {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 24}
        sliding = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3}
        module = tiny("Qwen2Moe", **experts, **sliding)
        assert len(set(module.config.layer_types)) == 2
        drafters = [NullDrafter(), EarlyExitDrafter(width=2, nodes=6), ModelDrafter(perturbed(module, 0.1))]
        for drafter in drafters:
            result = specdec.generate(FullVerifier(module), drafter, list(self.ROWS), max_new_tokens=24)
            assert result.metrics.faults == {}
            assert [result.row(b) for b in range(3)] == [plain_greedy(module, row, 24) for row in self.ROWS]

    def test_are_an_error_where_nothing_says_so(self) -> None:
        experts = {"num_experts_per_tok": 2, "num_local_experts": 4}
        verifier = FullVerifier(tiny("Phimoe", **experts, sliding_window=WINDOW))
        inside = specdec.generate(verifier, NullDrafter(), [1, 2, 3], max_new_tokens=WINDOW - 3)
        assert inside.row() == plain_greedy(verifier.model.network.module, [1, 2, 3], WINDOW - 3)
        with pytest.raises(
            ValueError, match=f"does not hand its sliding window on: keep rows within {WINDOW} tokens"
        ):
            specdec.generate(verifier, NullDrafter(), [1, 2, 3], max_new_tokens=WINDOW)
