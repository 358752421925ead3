"""Checkpoints of a training: written whole or not at all, so that one that is there is good."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

SUFFIX = ".pt"


class Checkpoints:
    """The newest checkpoints of a folder.

    Args:
        folder: made with the first one.
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    @property
    def files(self) -> list[Path]:
        """All that are there, the newest last."""
        return sorted(self.folder.glob(f"step-*{SUFFIX}"))

    def save(self, step: int, content: dict[str, Any]) -> Path | None:
        """Write one, then remove those that are too old; None where it cannot be written, and all others stay."""
        path = self.folder / f"step-{step:08}{SUFFIX}"
        try:
            write(path, content)
        except OSError as error:
            kept = f"the last one, {self.files[-1]}, stays" if self.files else "there is none yet"
            log.warning("the checkpoint of step %d could not be written (%s): %s", step, error, kept)
            return None
        for old in self.files[: -self.keep]:
            old.unlink()
        return path

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest one that can be read; None without any.

        Raises:
            ValueError: there are some, and none can be read.
        """
        for path in reversed(self.files):
            try:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # a damaged archive raises whatever its reader stumbles over
                log.warning("%s cannot be read and is left out: %s", path, error)
            else:
                return content
        if self.files:
            raise ValueError(f"no checkpoint in {self.folder} can be read: start anew in another folder")
        return None


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, and move it there when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    try:
        with scratch.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
