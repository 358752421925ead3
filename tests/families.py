"""Tiny random models of every architecture family, for tests."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

VOCABULARY = 128
LAYERS = 4
WINDOW = 8  # of sliding attention: shorter than every row that is tested

# Weights are this large: a token depends on the whole row, yet rows fall into loops that n-grams can find.
SPREAD = 0.25
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)


def llama(**changes: Any) -> PreTrainedModel:
    return tiny("Llama", **changes)


def gemma3(**changes: Any) -> PreTrainedModel:
    sizes = {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING, "query_pre_attn_scalar": 8}
    return tiny("Gemma3", config="Gemma3TextConfig", **{**sizes, **changes})


def gemma3_with_vision() -> PreTrainedModel:
    """A multimodal model whose vision tower has as many layers as its text model."""
    text = {**SIZES, "head_dim": 8, "sliding_window": WINDOW, "layer_types": ALTERNATING}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    }
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    config.eos_token_id = None
    module = transformers.Gemma3ForConditionalGeneration(config).eval()
    scatter_weights(module)
    return module


def mixtral(**changes: Any) -> PreTrainedModel:
    return tiny("Mixtral", **{**EXPERTS, "num_local_experts": 4, "sliding_window": None, **changes})


def qwen3_moe(**changes: Any) -> PreTrainedModel:
    return tiny("Qwen3Moe", **{**EXPERTS, "num_experts": 4, "head_dim": 8, "decoder_sparse_step": 1, **changes})


def opt(**changes: Any) -> PreTrainedModel:
    sizes = {"word_embed_proj_dim": SIZES["hidden_size"], "ffn_dim": SIZES["intermediate_size"]}
    return tiny("OPT", **{**sizes, **changes})


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": llama,
    "qwen2": lambda **changes: tiny("Qwen2", **changes),
    "qwen3": lambda **changes: tiny("Qwen3", **{"head_dim": 8, **changes}),
    "mistral-sliding": lambda **changes: tiny("Mistral", **{"sliding_window": WINDOW, "head_dim": 8, **changes}),
    "gemma3-hybrid": gemma3,
    "phi3": lambda **changes: tiny("Phi3", **changes),
    "gpt-neox": lambda **changes: tiny("GPTNeoX", **changes),
    "opt": opt,
    "gpt2": lambda **changes: tiny("GPT2", model="GPT2LMHeadModel", **changes),
    "mixtral": mixtral,
    "qwen3-moe": qwen3_moe,
}


def tiny(family: str, model: str | None = None, config: str | None = None, **changes: Any) -> PreTrainedModel:
    """A float32 model of a family with random weights, the same in every release of transformers."""
    settings = getattr(transformers, config or f"{family}Config")(**{**SIZES, **changes})
    module = getattr(transformers, model or f"{family}ForCausalLM")(settings).eval()
    scatter_weights(module)
    return module


@torch.no_grad()
def scatter_weights(module: nn.Module, spread: float = SPREAD) -> None:
    """Give every parameter random values that depend on its name and shape alone."""
    for name, weight in module.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:  # norms and biases stay near what they were made as
            weight.add_(0.1 * noise)
        else:
            weight.copy_(spread * noise)


@torch.no_grad()
def perturbed(module: PreTrainedModel, amount: float, seed: int = 1) -> PreTrainedModel:
    """A copy that often agrees with the model and often does not."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight.add_(amount * weight.std(correction=0) * torch.randn(weight.shape, generator=generator))
    return other


def random_prompt(length: int, seed: int) -> list[int]:
    """Token ids of a random row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


def plain_greedy(
    module: PreTrainedModel, prompt: list[int], count: int, ends: list[int] | None = None
) -> list[int]:
    """What Hugging Face's own ``generate`` says, one row at a time."""
    row = torch.tensor([prompt])
    answer = module.generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=0,
    )
    return answer[0, len(prompt) :].tolist()


@torch.no_grad()
def plain_logits(module: PreTrainedModel, row: list[int]) -> torch.Tensor:
    """[tokens, V] of a forward without any cache."""
    return module(input_ids=torch.tensor([row]), use_cache=False).logits[0]
