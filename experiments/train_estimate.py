"""What a training is going to take, from a rehearsal on its own batches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from experiments.stopwatch import now, peak
from experiments.train_data import Batch
from experiments.trainer import Trainer

COPIES = 3  # of the weights in a checkpoint: AdamW keeps two means of each


@dataclass(frozen=True)
class Estimate:
    """What it takes.

    Attributes:
        step_seconds: of a batch of middling length, times the batches of a step.
        check_seconds: of a check.
        memory_bytes: the most that was held, the optimiser's means included.
        checkpoint_bytes: of one.
        free_bytes: of the disk.
    """

    step_seconds: float
    check_seconds: float
    memory_bytes: int
    checkpoint_bytes: int
    free_bytes: int

    def said(self, steps: int, checks: int, keep: int) -> str:
        """In words."""
        training, checking = steps * self.step_seconds / 60, checks * self.check_seconds / 60
        disk = self.checkpoint_bytes * (keep + 1)
        short = "; THAT IS TOO LITTLE, checkpoints will not be written" if disk > self.free_bytes else ""
        return (
            f"{steps} steps: about {training:.1f} minutes, and {checking:.1f} for {checks} checks; "
            f"{size(self.memory_bytes)} of memory; {size(disk)} of disk for checkpoints, "
            f"{size(self.free_bytes)} are free{short}"
        )


def estimate(
    trainer: Trainer, longest: Batch, usual: Batch, check: Callable[[], object], folder: Path
) -> Estimate:
    """Rehearse the longest batch, of which memory is known, and a usual one and a check, of which time is."""
    device = trainer.target.device
    trainer.rehearse(longest)
    start = now(device)
    trainer.rehearse(usual)
    step = (now(device) - start) * trainer.recipe.accumulate
    start = perf_counter()
    check()
    weights = sum(weight.numel() * weight.element_size() for weight in trainer.weights)
    return Estimate(
        step_seconds=step,
        check_seconds=perf_counter() - start,
        memory_bytes=peak(device) + (COPIES - 1) * weights,
        checkpoint_bytes=COPIES * weights,
        free_bytes=shutil.disk_usage(folder).free,
    )


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
