"""Loading a model from whatever names it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specdec.runtime.checkpoints import SHORT_NAMES, resolve
from specdec.runtime.compiled import CompiledLayers
from specdec.runtime.huggingface import Network
from specdec.runtime.huggingface_files import end_tokens, read_model, read_tokenizer
from specdec.runtime.model import CachedModel
from specdec.runtime.proof import prove
from specdec.runtime.replay import current
from specdec.runtime.synthetic import PREFIX, Synthetic

log = logging.getLogger(__name__)

RUNTIMES = ("eager", "graphed", "auto")


@dataclass(frozen=True)
class Loaded:
    """A model, with the tokenizer and the end tokens that belong to it."""

    model: CachedModel
    tokenizer: Any | None
    end_tokens: tuple[int, ...]
    graphed: bool = False


def load(
    source: str | Path | nn.Module | CachedModel | Synthetic,
    tokenizer: Any | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    runtime: str = "auto",
) -> Loaded:
    """A model with a cache.

    Args:
        source: a Hugging Face id, a directory, a GGUF file, a short name (``smollm2-135m-instruct``), a
            Hugging Face model in memory (taken as it is: type and device are its own), a ``CachedModel``, or
            a shape to be filled with random weights (``synthetic/qwen3-8b``, see ``Synthetic``).
        tokenizer: replaces the one found beside the weights, if there is one; a model in memory has none
            otherwise.
        dtype: "auto" is bfloat16 on a GPU and on a CPU that computes in it, else float32.
        device: "auto" is the first GPU, else the CPU. The last GPU stands in for one that is not there.
        runtime: "eager" launches every operation, "graphed" replays whole rounds on a GPU, "auto" does so where
            there is one.

    Raises:
        FileNotFoundError, OSError: there is no such model.
        ValueError: it is damaged, or of an unsupported architecture.
    """
    if isinstance(source, str) and source.startswith(PREFIX):
        source = Synthetic(source)
    if isinstance(source, Synthetic):
        device = pick_device(device)
        made = source.module(pick_dtype(dtype, device), device)
        return prepared(Network(made), tokenizer or source.tokenizer, (), runtime)
    if isinstance(source, nn.Module):
        module: Any = source
        return prepared(Network(module), tokenizer, end_tokens(module), runtime)
    if not isinstance(source, str | Path):  # made by the caller, tests' stand-ins included
        return Loaded(source, tokenizer, ())
    device = pick_device(device)
    path = resolve(source)
    try:
        module = read_model(path, pick_dtype(dtype, device), device)
        tokenizer = tokenizer or read_tokenizer(path)
    except OSError as error:
        raise OSError(f"cannot load {str(source)!r}: {reason(path, error)}") from error
    return prepared(Network(module), tokenizer, end_tokens(module), runtime)


def load_tokenizer(source: str | Path) -> Any | None:
    """The tokenizer that ``load`` finds beside the weights, without them. Raises what ``load`` raises."""
    if isinstance(source, str) and source.startswith(PREFIX):
        return Synthetic(source).tokenizer
    return read_tokenizer(resolve(source))


def prepared(network: Network, tokenizer: Any | None, ends: tuple[int, ...], runtime: str) -> Loaded:
    """A network, ready to run as it is wanted. Raises ValueError for a runtime that it cannot have."""
    graphed, model = pick_runtime(runtime, network.devices), CachedModel(network)
    if graphed:
        with current(network.device):
            network.quicken()
            prove(model)
        network.compiled = CompiledLayers() if network.brief and network.lean is None else None
    return Loaded(model, tokenizer, ends, graphed)


def pick_runtime(runtime: str, devices: Collection[torch.device]) -> bool:
    """Whether rounds are replayed. Raises ValueError for a runtime that is unknown or needs other devices."""
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {', '.join(RUNTIMES)}, not {runtime!r}")
    single = len(devices) == 1 and next(iter(devices)).type == "cuda"
    if runtime == "graphed" and not single:
        where = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"runtime=graphed needs one GPU, but the model is on {where}: pass runtime=eager or auto")
    return runtime != "eager" and single


def reason(path: str | Path, error: OSError) -> str:
    """Why a model could not be read: what was not found in its directory, or what its name does not mean."""
    if isinstance(path, Path):
        return f"its directory is incomplete or damaged, download or copy it again: {error}"
    return (
        f"it is no directory, no .gguf file and none of the short names ({', '.join(SHORT_NAMES)}), "
        f"and as a Hugging Face id it gave: {error}"
    )


def pick_device(device: str | torch.device) -> torch.device:
    """The first GPU for "auto", else the CPU. The last GPU stands in for one that is not there.

    Raises:
        ValueError: a GPU where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: PyTorch sees no GPU here, pass device='cpu' or 'auto'")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        last = torch.device("cuda", torch.cuda.device_count() - 1)
        log.warning(
            "there is no %s here, %s takes its place: a target and a drafter on one GPU do not overlap",
            device,
            last,
        )
        return last
    return device


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for "auto" where the device computes in it, else float32.

    Raises:
        ValueError: it is not a floating-point type.
    """
    if dtype == "auto":
        quick = (
            device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
        return torch.bfloat16 if quick else torch.float32
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is no floating-point type: try auto, bfloat16, float16 or float32")
    return found
