"""The folder of a training: what it was asked, what it logged, how far it is, and the head in the end."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.checkpoint import Checkpoints
from experiments.folder import Folder, differences

log = logging.getLogger(__name__)

# They change nothing of what is learnt.
FREE = ("resume", "out", "logger", "cache", "keep", "save_every", "check_")


class TrainingFolder(Folder):
    """Files of one training: config.yaml, provenance.json, log.jsonl, checkpoints/, and the head at ``out``.

    Args:
        path: the folder.
        out: where the head goes; None is head/ in the folder.
        keep: how many checkpoints stay.
    """

    def __init__(self, path: Path, out: str | None, keep: int) -> None:
        super().__init__(path)
        self.log, self.out = path / "log.jsonl", path / "head" if out is None else Path(out).expanduser()
        self.checkpoints = Checkpoints(path / "checkpoints", keep)

    def start(self, config: DictConfig) -> None:
        """Keep the resolved configuration; where the training goes on, check it.

        Raises:
            ValueError: there is a training already and it is not to go on, or it is of another configuration; or
                there is something where the head is to be.
        """
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ValueError(
                f"{self.out} is there already: the training is finished, or pass another out=<folder>"
            )
        if self.checkpoints.files and not config.resume:
            raise ValueError(
                f"{self.path} holds a training: pass resume=true to go on with it, or another hydra.run.dir"
            )
        if self.checkpoints.files and self.config.exists():
            changes = differences(OmegaConf.load(self.config), config, FREE)
            if changes:
                raise ValueError(
                    f"{self.path} holds a training of another configuration ({'; '.join(changes)}): pass the same "
                    "values as then, or another hydra.run.dir"
                )
        elif config.resume and not self.checkpoints.files:
            log.warning("%s holds no checkpoint: the training begins", self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, self.config, resolve=True)

    def rewind(self, step: int) -> None:
        """Drop what was logged behind a step: it comes again."""
        if self.log.exists():
            lines = [line for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            self.log.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))

    def note(self, record: dict[str, Any]) -> None:
        """Log a record. A disk that is full costs the record, not the training."""
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            log.warning("step %d could not be logged: %s", record["step"], error)

    def deliver(self, write: Callable[[Path], None]) -> None:
        """Put the head where it is to be, whole or not at all. ``write`` gets an empty folder.

        Raises:
            OSError: it cannot be written. The checkpoints are still there.
        """
        scratch = self.out.with_name(self.out.name + ".tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            scratch.mkdir(parents=True)
            write(scratch)
            if self.out.exists():
                self.out.rmdir()  # it is empty
            scratch.replace(self.out)
        except OSError as error:
            raise OSError(
                f"the head cannot be written to {self.out} ({error}): make room and pass resume=true, no step "
                "is trained again"
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
