"""From a configuration to what is trained, by what and on what."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import platformdirs
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from drafters.trainable import FrozenTarget, checked
from experiments.reply_store import ReplyStore
from experiments.train_checks import Check, drafter_maker
from experiments.train_data import Batch, cut
from experiments.train_texts import Texts, asked, collect, fitting
from experiments.trainer import Recipe, Trainer
from experiments.writing import Writing, portions
from specdec.runtime.loading import pick_device, pick_dtype
from verifiers import FullVerifier

log = logging.getLogger(__name__)

PATIENCE = timedelta(hours=12)  # processes wait for each other's replies


@dataclass(frozen=True)
class Parts:
    """What a training is made of.

    Attributes:
        verifier: the target.
        trainer: holds the head.
        texts: what it learns from.
        check: what it is worth.
    """

    verifier: FullVerifier
    trainer: Trainer
    texts: Texts
    check: Check


def joined(config: DictConfig) -> Accelerator:
    """This process among those that were started.

    Raises:
        ValueError: a device for all of several processes, or a precision that the device does not compute in.
    """
    device = pick_device(config.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    precision = precision_of(config.precision, device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="bf16" if precision == torch.bfloat16 else "no",
        device_placement=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes > 1 and device.index is not None:
        raise ValueError(f"{accelerator.num_processes} processes cannot share {device}: leave device=auto")
    return accelerator


def precision_of(wanted: str, device: torch.device) -> torch.dtype:
    """The type that a head computes in; its weights are float32 in either case.

    Raises:
        ValueError: an unknown one, or bf16 where the device does not compute in it.
    """
    able = (
        torch.cuda.is_bf16_supported() if device.type == "cuda" else pick_dtype("auto", device) == torch.bfloat16
    )
    if wanted == "bf16" and not able:
        raise ValueError(f"{device} does not compute in bfloat16: pass precision=fp32")
    if wanted == "auto" and not able:
        log.warning("%s does not compute in bfloat16: the head is trained in float32", device)
    return torch.bfloat16 if able and wanted != "fp32" else torch.float32


def build(config: DictConfig, accelerator: Accelerator, console: Console) -> Parts:
    """Load the target, make a head and its drafter, and see to the replies.

    Raises:
        ValueError: something does not fit, or nothing is left to learn from.
        OSError: there is no such model or file.
        hydra.errors.InstantiationException: what a part raised when it was made.
    """
    # Before the target, which takes longest to load.
    requests = asked(config.prompts, config.replies, config.seed)
    make = drafter_maker(config.head.drafter)
    place = {"device": str(accelerator.device)} if accelerator.num_processes > 1 else {}
    verifier: FullVerifier = instantiate(config.verifier, _convert_="all", **place)
    verifier.model.network.module.requires_grad_(False)
    # What is wrong is said before anything is written.
    made = fresh(config, verifier)
    if make is not None:
        make(made)
    how = Writing(config.new_tokens, config.rows, config.longest, config.temperature, config.seed)
    store = ReplyStore(cache_of(config.cache), verifier)
    parts = portions(verifier, requests, fitting(verifier, how))
    texts = collect(store, parts, accelerator, console)
    head = fresh(config, verifier, counted(texts, verifier.vocab_size))
    trainer = Trainer(accelerator, head, verifier.model, recipe_of(config))
    held = cut(texts.held[: config.check_replies], config.batch)
    batches = [Batch.of(some, verifier.device) for some in held]
    prompts = list(dict.fromkeys(text.tokens[: text.prompt] for text in texts.held))[: config.check_prompts]
    check = Check(verifier, make, batches, prompts, config.check_tokens)
    torch.manual_seed(config.seed + 1 + accelerator.process_index)
    return Parts(verifier, trainer, texts, check)


def counted(texts: Texts, vocabulary: int) -> Tensor:
    """int64 [V]: how often each token occurs in the replies that are learnt from."""
    replies = [token for text in texts.train for token in text.tokens[text.prompt :]]
    return torch.bincount(torch.tensor(replies), minlength=vocabulary)


def fresh(config: DictConfig, verifier: FullVerifier, counts_V: Tensor | None = None) -> nn.Module:
    """A head for a target, where the target is, in float32. Raises ValueError for one that cannot be trained."""
    torch.manual_seed(config.seed)
    make = instantiate(config.head.module, _convert_="all", _partial_=True)
    try:
        head: Any = make(target=FrozenTarget(verifier.model.network, counts_V))
    except TypeError as error:
        raise ValueError(f"head.module: {error}") from error
    checked(head)
    made: nn.Module = head.to(verifier.device, torch.float32)
    return made


def recipe_of(config: DictConfig) -> Recipe:
    """How to train."""
    first, second = config.betas
    return Recipe(
        steps=config.steps,
        accumulate=config.accumulate,
        rate=config.rate,
        betas=(first, second),
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        decay=config.decay,
        clip=config.clip,
    )


def cache_of(folder: str | None) -> Path:
    """Where replies are kept."""
    return Path(folder).expanduser() if folder else Path(platformdirs.user_cache_dir("specdec")) / "replies"
