"""What decoding costs elsewhere: Hugging Face, economize and flashspec on the same two modules, kept in memory.

economize and flashspec are no dependencies of ours: an arm imports its library in its first generation, and one
that cannot be imported is left out like any arm that fails. Neither of the two reserves a share of the GPU, as
servers do, nor starts a process group: what they hold are caches of one sequence and their recordings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from drafters import ModelDrafter
from experiments.bench_arms import PREFILL, Sample, Window
from experiments.bench_huggingface import HuggingFace, assisted
from experiments.stopwatch import now
from verifiers import FullVerifier

Decode = Callable[[list[int]], Sample]
TOO_FEW = "too few rounds to time: raise peer_tokens"


@dataclass(frozen=True)
class PeerArm:
    """Another library's way to decode, greedy, with its own attention and cache. It may fail."""

    name: str
    decode: Decode
    length: int = 0

    def __call__(self, prompt: list[int]) -> Sample:
        return self.decode(prompt)


@dataclass(frozen=True, eq=False)
class Task:
    """What every library is given.

    Attributes:
        target, assistant: Hugging Face modules; ours run on the same weights.
        new_tokens: per generation, end tokens or not.
        length: tokens that the assistant drafts per round.
    """

    target: Any
    assistant: Any
    new_tokens: int
    length: int

    @property
    def device(self) -> torch.device:
        """Where all run."""
        return self.target.device

    @cached_property
    def engines(self) -> Engines:
        """flashspec's, on shared models: they hold what takes minutes to compile."""
        return engines(self)


def peer_arms(
    verifier: FullVerifier, drafter: ModelDrafter, names: Sequence[str], new_tokens: int, length: int
) -> list[PeerArm]:
    """The ways that are named. Raises ValueError for an unknown one."""
    if wrong := [name for name in names if name not in WAYS]:
        raise ValueError(f"peers must be among {', '.join(WAYS)}, not {wrong[0]!r}")
    task = Task(verifier.model.network.module, drafter.model.network.module, new_tokens, length)
    return [PeerArm(title(name), WAYS[name](task)) for name in names]


def title(name: str) -> str:
    """What the tables call a way."""
    return name.replace("-", " ") if "-" in name else f"hf {name}"


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


def between(times: Sequence[float], reads: Sequence[int], skip: int) -> Window:
    """The reads that read no prompt and that the end does not cut.

    Args:
        times: when each token was read, in seconds.
        reads: how many tokens each read brought.
        skip: reads until both models have read the prompt.

    Raises:
        ValueError: there are none.
    """
    ends = list(accumulate(reads))
    if len(ends) <= skip + 1:
        raise ValueError(TOO_FEW)
    first, last = ends[skip - 1], ends[-2]
    return Window(times[last - 1] - times[first - 1], last - first, len(ends) - skip - 1)


@dataclass(frozen=True)
class FlashSpec:
    """flashspec's engine on static caches, compiled and recorded where there is a GPU.

    It tells the seconds and tokens of every step, from one read of the host to the next. The first step reads the
    prompt with both models; the last may be cut.

    Attributes:
        task: its modules.
        fixed: whether every step drafts the task's length with the drafter; else the library chooses.
    """

    task: Task
    fixed: bool

    def __call__(self, prompt: list[int]) -> Sample:
        engines, device = self.task.engines, self.task.device
        engine = engines.fixed if self.fixed else engines.chosen
        tokens_1S = torch.tensor([prompt], device=device)
        start = now(device)
        result = engine.generate(tokens_1S, self.task.new_tokens)
        seconds = now(device) - start
        for model in engines.models:
            refuse_uncompiled(model)
        steps = result.arm_steps[1:-1]
        if not steps:
            raise ValueError(TOO_FEW)
        window = Window(sum(step.seconds for step in steps), sum(step.emitted for step in steps), len(steps))
        return Sample(result.output_ids[0].tolist(), seconds, window)


@dataclass(frozen=True)
class Engines:
    """flashspec's wrappers of target and drafter, and two engines that share them.

    Attributes:
        models: the wrappers, with caches and compiled forwards.
        fixed: drafts as many tokens as the task says.
        chosen: decodes as the library does by itself, which drafts two or looks them up in what was said before.
    """

    models: tuple[Any, Any]
    fixed: Any
    chosen: Any


def engines(task: Task) -> Engines:
    """Both engines, greedy. They are made before either runs: a later one would enlarge the caches, and have all
    recorded anew.
    """
    flashspec, part = import_module("flashspec"), import_module("flashspec.engine")
    target = part.TargetModel("target", task.device, model=task.target)
    drafter = part.HuggingFaceDrafter("drafter", task.device, temperature=0.0, model=task.assistant)
    config = flashspec.FlashSpecConfig(
        device=str(task.device),
        compile=task.device.type == "cuda",
        sampling=flashspec.SamplingConfig(temperature=0.0),
    )
    arms = [part.ArmSpec(drafter=0, gamma=task.length)]
    fixed = flashspec.SpeculativeEngine(config, [drafter], target, arms=arms)
    return Engines((target, drafter), fixed, flashspec.SpeculativeEngine(config, [drafter], target))


def refuse_uncompiled(model: Any) -> None:
    """Raises RuntimeError where flashspec could not compile, and went on without a word to its caller."""
    reason = getattr(getattr(model, "_inc", None), "compile_fallback_reason", None)
    if reason is not None:
        raise RuntimeError(f"flashspec could not compile its forward: {reason}")


WAYS: Mapping[str, Callable[[Task], Decode]] = {
    "generate": lambda task: HuggingFace(task.target, task.new_tokens),
    "static": lambda task: HuggingFace(task.target, task.new_tokens, {"cache_implementation": "static"}),
    "assisted": lambda task: HuggingFace(task.target, task.new_tokens, assisted(task.assistant, task.length)),
    "economize-plain": lambda task: Economize(task, 0),
    "economize-draft": lambda task: Economize(task, task.length),
    "economize-sync": lambda task: EconomizeAhead(task, "sync"),
    "economize-async": lambda task: EconomizeAhead(task, "async"),
    "flashspec-draft": lambda task: FlashSpec(task, fixed=True),
    "flashspec-auto": lambda task: FlashSpec(task, fixed=False),
}
