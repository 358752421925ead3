"""One training, from its configuration to the head."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from drafters.trainable import checked
from experiments.folder import resolved, write_json
from experiments.logger import Curves, NoLogger
from experiments.model_card import card, sources
from experiments.progress import bar, say
from experiments.provenance import provenance
from experiments.train_build import Parts, build, joined
from experiments.train_checks import Found
from experiments.train_data import Batch, Order
from experiments.train_estimate import estimate
from experiments.train_folder import TrainingFolder
from experiments.trainer import DivergedError

log = logging.getLogger(__name__)


def run_training(config: DictConfig, overrides: Sequence[str], path: Path, console: Console) -> None:
    """Train a head, and write it with what is known of it.

    Args:
        config: see conf/train.yaml.
        overrides: of the command line.
        path: the folder of the training.
        console: for progress.

    Raises:
        ValueError, OSError, hydra.errors.InstantiationException: the configuration is wrong.
        DivergedError: a loss or a gradient is not finite; the last good state is kept.
    """
    accelerator = joined(config)
    console.quiet = not accelerator.is_main_process
    place = [str(path)]
    broadcast_object_list(place)
    folder = TrainingFolder(Path(place[0]), config.out, config.keep)
    if accelerator.is_main_process:
        folder.start(config)
    accelerator.wait_for_everyone()
    logger = instantiate(config.logger) if accelerator.is_main_process else NoLogger()
    session = Session(config, accelerator, folder, console, build(config, accelerator, console))
    session.begin(overrides)
    with logger.curves(resolved(config), folder.path) as curve:
        session.train(curve)
    session.end(overrides)


class Session:
    """A training in progress.

    Args:
        config: see conf/train.yaml.
        accelerator: knows the other processes.
        folder: of the training.
        console: for progress.
        parts: what is trained, by what and on what.
    """

    def __init__(
        self, config: DictConfig, accelerator: Accelerator, folder: TrainingFolder, console: Console, parts: Parts
    ) -> None:
        self.config, self.accelerator, self.folder, self.console = config, accelerator, folder, console
        self.parts, self.trainer = parts, parts.trainer
        sizes = tuple(len(text.tokens) for text in parts.texts.train)
        self.order = Order(sizes, config.batch, config.seed)
        self.found: Found | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes and checks for all."""
        return bool(self.accelerator.is_main_process)

    def begin(self, overrides: Sequence[str]) -> None:
        """Go on from the newest checkpoint, if there is one, and say what the rest is going to take."""
        content = self.folder.checkpoints.newest()
        if content is not None:
            self.trainer.restore(content)
            say(self.console, f"going on behind step {self.trainer.step}")
        if self.main:
            self.folder.rewind(self.trainer.step if content else -1)
            self.folder.write_provenance(self.origin(overrides))
        left = self.config.steps - self.trainer.step
        if left:
            expected = estimate(self.trainer, self.longest, self.middling, self.first_check, self.folder.path)
            checks = left // self.config.check_every + 1
            say(self.console, expected.said(left, checks, self.config.keep))
        self.accelerator.wait_for_everyone()

    def train(self, curve: Curves) -> None:
        """All steps that are left. Raises DivergedError where one cannot be made."""
        every = self.config.save_every
        with bar(self.console, "training", self.config.steps, self.trainer.step) as progress:
            while self.trainer.step < self.config.steps:
                self.note(self.step(), curve)
                progress(1)
                if self.trainer.step % every == 0 or self.trainer.step == self.config.steps:
                    self.save()

    def step(self) -> dict[str, float]:
        """One step."""
        rate, step = self.trainer.rate, self.trainer.step
        batches = [self.batch(step * self.config.accumulate + index) for index in range(self.config.accumulate)]
        try:
            losses = self.trainer.advance(batches)
        except DivergedError as error:
            if step % self.config.save_every:  # else it is there
                self.save()
            kept = self.folder.checkpoints.files
            where = f"the state before it is in {kept[-1]}" if kept else "there is no state before it"
            raise DivergedError(f"{error}. {where}; a lower rate or a clip may help") from error
        return {**losses, "rate": rate}

    def note(self, figures: Mapping[str, float], curve: Curves) -> None:
        """Log a step, and check the head where it is time."""
        if not self.main:
            return
        step, record = self.trainer.step, dict(figures)
        if step % self.config.check_every == 0 or step == self.config.steps:
            record |= self.check()
        self.folder.note({"step": step, **record})
        curve(step, {name: value for name, value in record.items() if isinstance(value, float)})

    def check(self) -> dict[str, Any]:
        """What the head is worth now, said and kept."""
        self.found = self.parts.check(self.trainer)
        held = [f"{name} {value:.4f}" for name, value in self.found.losses.items()]
        if self.found.accepted is not None:
            held.insert(0, f"{self.found.accepted:.3f} tokens per forward")
        say(self.console, f"step {self.trainer.step}: held out {', '.join(held)}")
        return self.found.as_dict()

    def first_check(self) -> None:
        """The check before the next step, logged if that is the first one."""
        if self.main:
            record = self.check()
            if not self.trainer.step:
                self.folder.note({"step": 0, **record})

    def save(self) -> None:
        """Keep the state, of all processes."""
        content = self.trainer.content()
        if self.main:
            self.folder.checkpoints.save(self.trainer.step, content)

    def end(self, overrides: Sequence[str]) -> None:
        """Write the head. Raises OSError where that is not possible."""
        if self.main:
            if self.found is None:
                self.check()
            origin = self.origin(overrides)
            self.folder.deliver(lambda path: self.write(path, origin))
            say(self.console, f"the head is in {self.folder.out}")
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def write(self, path: Path, origin: Mapping[str, Any]) -> None:
        """The head as it was checked, its model card and where it comes from, into a folder."""
        assert self.found is not None
        checked(self.trainer.usable).save(path)
        text = card(self.found, self.data, resolved(self.config), origin)
        (path / "README.md").write_text(text, encoding="utf-8")
        write_json(path / "provenance.json", {**origin, **self.found.as_dict(), "data": self.data})

    def origin(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Where the head comes from."""
        command = shlex.join(["specdec-train", *overrides])
        processes = self.accelerator.num_processes
        return {**provenance(overrides, self.parts.verifier), "command": command, "processes": processes}

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the head learns from."""
        texts = self.parts.texts
        return {
            "prompts": sources(self.config.prompts),
            "replies to learn from": len(texts.train),
            "held out, of other prompts": len(texts.held),
            "tokens of replies": sum(len(text.tokens) - text.prompt for text in texts.train),
        }

    def batch(self, number: int) -> Batch:
        """A batch of this process, counted from its first one."""
        rows = self.order.batch(number * self.accelerator.num_processes + self.accelerator.process_index)
        return Batch.of([self.parts.texts.train[row] for row in rows], self.parts.verifier.device)

    @property
    def middling(self) -> Batch:
        """A batch than which half of the first epoch's are longer."""
        batches = [self.order.batch(number) for number in range(self.order.per_epoch)]
        batches.sort(key=lambda rows: max(self.order.sizes[row] for row in rows))
        rows = [self.parts.texts.train[row] for row in batches[len(batches) // 2]]
        return Batch.of(rows, self.parts.verifier.device)

    @property
    def longest(self) -> Batch:
        """The longest rows side by side."""
        rows = sorted(self.parts.texts.train, key=lambda text: len(text.tokens))[-self.config.batch :]
        return Batch.of(rows, self.parts.verifier.device)
