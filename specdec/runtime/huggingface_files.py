"""Reading and making Hugging Face models. With ``huggingface`` the only files that import transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")


def read_model(
    path: str | Path, dtype: torch.dtype, device: torch.device | str, gguf_file: str | None = None
) -> PreTrainedModel:
    """A model from a Hugging Face id or a directory; of a GGUF file, its weights dequantised.

    Raises:
        ValueError: not a language model, or its weights are damaged or incomplete.
    """
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if gguf_file is None:
        options["config"] = read_config(path)
    else:
        options["gguf_file"] = gguf_file
        if hasattr(transformers, "GgufConfig"):  # older releases always dequantise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(path, **options)
    except SafetensorError as error:
        raise ValueError(f"{path} has damaged weights ({error}): download or copy them again") from error
    module, info = answer
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise ValueError(f"{path} lacks weights ({missing[0]} first): download or copy it again")
    return module.to(device)


def new_model(kind: str, dtype: torch.dtype, device: torch.device, **sizes: Any) -> PreTrainedModel:
    """A model of a kind ("qwen3") and of given sizes, made on its device; its matrices are yet to be filled."""
    with device, transformers.initialization.no_init_weights():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=dtype)


def read_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of a causal language model. Raises ValueError for a model of another kind."""
    config = AutoConfig.from_pretrained(path)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = config.model_type
        raise ValueError(f"{path} ({kind}) is no causal language model: a decoder-only model is needed")
    return config


def read_tokenizer(path: str | Path, gguf_file: str | None = None) -> Any:
    """The tokenizer that belongs to a model, None if a directory holds none."""
    if gguf_file is not None:
        return AutoTokenizer.from_pretrained(path, gguf_file=gguf_file)
    if isinstance(path, Path) and not any(any(path.glob(name)) for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(path)


def end_tokens(module: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a generation, from the generation config, else from the model's."""
    for config in (module.generation_config, module.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    return ()
