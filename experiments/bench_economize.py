"""economize's ways to decode: plainly, with a draft model, and on two devices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from experiments.bench_arms import PREFILL, Sample
from experiments.bench_task import Task, between
from experiments.stopwatch import now


@dataclass(frozen=True)
class Economize:
    """economize's loop, replayed from CUDA graphs where there is a GPU.

    It has no streamer, but asks a stop condition about each token once the host has read it: one that never stops
    notes the time. The tokens of a read are noted together, and ``reads`` says how many those are. Plain decoding
    reads several steps at once; an observer of its rounds would make it read each, and slower.

    Attributes:
        task: its modules.
        drafts: tokens drafted per round; 0 decodes plainly.
    """

    task: Task
    drafts: int

    def __call__(self, prompt: list[int]) -> Sample:
        with torch.no_grad():
            result, seconds, times = noted(self.decoder.decode, "stop", self.task, prompt)
        window = between(times, self.reads(result), PREFILL if self.drafts else 1)
        # A plain round is a token, however many of them are read at once.
        window = window if self.drafts else replace(window, rounds=window.tokens)
        return Sample(result.tokens.tolist(), seconds, window)

    @cached_property
    def decoder(self) -> Any:
        """The loop with its recordings, put together as by ``economize.apply``, which reads drafters from disk."""
        economize = import_module("economize")
        config = economize.DecodeConfig(cycle_length=self.drafts + 1, cuda_graphs=True)
        drafter = None
        if self.drafts:
            part, size = import_module("economize.techniques.draft_model"), self.task.target.config.vocab_size
            drafter = part.DraftModelDrafter(runner(self.task.assistant), size)
        return economize.CycleDecoder(runner(self.task.target), drafter, config)

    def reads(self, result: Any) -> list[int]:
        """How many tokens each of the host's reads brought; the last of them may be more than were wanted."""
        if self.drafts:
            return rounds_of(result)
        size = self.decoder.config.sync_interval
        return [size] * -(-self.task.new_tokens // size)


@dataclass(frozen=True, eq=False)
class EconomizeAhead:
    """economize's loop on two devices: SSD (arXiv 2603.03251), or in turns. Nothing of it is recorded.

    Attributes:
        task: its modules, the assistant on a device of its own.
        mode: "async" or "sync".
    """

    task: Task
    mode: str

    def __call__(self, prompt: list[int]) -> Sample:
        result, seconds, times = noted(self.decoder.generate, "stop_tokens", self.task, prompt)
        return Sample(result.tokens.tolist(), seconds, between(times, rounds_of(result), PREFILL))

    @cached_property
    def decoder(self) -> Any:
        """Both sides."""
        part = import_module("economize.distributed.ssd")
        config = part.SSDConfig(draft_length=self.task.length, mode=self.mode)
        return part.AsyncSpeculativeDecoder(self.task.target, self.task.assistant, config)


def noted(decode: Callable[..., Any], stop: str, task: Task, prompt: list[int]) -> tuple[Any, float, list[float]]:
    """What economize made of a prompt, the seconds it took, and when the host had read each token; it asks the
    condition of that name about each."""
    times: list[float] = []

    def note(_: Tensor) -> bool:
        times.append(time.perf_counter())
        return False

    tokens_S = torch.tensor(prompt, device=task.device)
    start = now(task.device)
    result = decode(tokens_S, task.new_tokens, **{stop: note})
    return result, now(task.device) - start, times


def rounds_of(result: Any) -> list[int]:
    """How many tokens each read brought: the prompt's own token, then what was accepted and one more."""
    return [1, *(accepted + 1 for _, accepted in result.acceptance)]


def runner(module: Any) -> Any:
    """economize's view of a module."""
    return import_module("economize.runtime").LayerRunner(import_module("economize.arch").adapter_for(module))
