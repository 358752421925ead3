"""Networks with the names of Llama's parts are taken for Llama-like only if their layers compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import tiny

pytest.importorskip("triton")

from specdec.runtime.fuse import STRICT, looks_right, packed
from specdec.runtime.likeness import ends_likeness, likeness


def gap(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> float:
    module: Any = tiny(kind, **changes).to(dtype)
    assert looks_right(module, module.config), "the names alone do not tell"
    with torch.no_grad():
        return likeness(module, packed(module, module.config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("Qwen2", {}),
        ("Granite", {"attention_multiplier": 0.5}),
        ("Qwen3", {"head_dim": 8}),
        ("Qwen3", {"head_dim": 8, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ],
)
def test_what_is_like_llama(kind: str, changes: dict[str, Any], dtype: torch.dtype) -> None:
    assert gap(kind, dtype, **changes) < 1e-5


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {"hidden_act": "gelu"}),  # another activation
        ("SmolLM3", {}),  # every fourth layer does not rotate
        ("Ernie4_5", {}),  # rotates neighbours, not halves
        ("Gemma", {"head_dim": 8}),  # norms add one to their weights
        ("Granite", {"residual_multiplier": 0.5}),
        ("Ministral3", {"max_position_embeddings": 65536}),  # scales queries behind the original positions
    ],
)
def test_what_only_looks_like_it(kind: str, changes: dict[str, Any]) -> None:
    assert not gap(kind, **changes) < 2 * STRICT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Granite"])
def test_what_is_before_and_behind_the_layers(kind: str, dtype: torch.dtype) -> None:
    module: Any = tiny(kind).to(dtype)
    before = module(torch.tensor([[3, 1, 4]])).logits
    assert ends_likeness(module, packed(module, module.config)) < 1e-5
    assert torch.equal(module(torch.tensor([[3, 1, 4]])).logits, before), "the module is another now"


@pytest.mark.parametrize("changes", [{"logits_scaling": 1.12}, {"embedding_multiplier": 1.05}])
def test_scaled_embeddings_and_logits_are_noticed(changes: dict[str, Any]) -> None:
    module: Any = tiny("Granite", **changes).bfloat16()
    assert looks_right(module, module.config)
    assert ends_likeness(module, packed(module, module.config)) > 2 * STRICT


def test_a_head_with_a_bias_is_another_kind() -> None:
    module: Any = tiny("Llama")
    module.lm_head = torch.nn.Linear(module.lm_head.in_features, module.lm_head.out_features)
    assert not looks_right(module, module.config)


def test_the_module_is_left_as_it_was() -> None:
    module: Any = tiny("Qwen2").bfloat16()
    tokens = torch.tensor([[3, 1, 4]])
    before = module(tokens).logits
    with torch.no_grad():
        likeness(module, packed(module, module.config))
    assert module.dtype == torch.bfloat16 and torch.equal(module(tokens).logits, before)
