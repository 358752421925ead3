"""flashspec's ways to decode, by its engine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from experiments.bench_arms import Sample, Window
from experiments.bench_task import TOO_FEW, Task
from experiments.stopwatch import now


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
        engines, device = self.task.once(both), self.task.device
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


def both(task: Task) -> Engines:
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
