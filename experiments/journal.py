"""The results of a run: one JSON line per prompt, turn and arm, written as soon as it is done."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Key = tuple[str, int, str]


@dataclass(frozen=True)
class Entry:
    """What one arm answered to one turn of a prompt.

    Attributes:
        id, category: of the prompt.
        turn: counts from 0.
        arm: its name.
        prompt_tokens: length of what went in.
        tokens: new token ids, the end token included.
        text: the same as text, without special tokens.
        metrics: ``specdec.Metrics.as_dict()``, the drafter's faults among them.
        error: why there is no answer, None where there is one.
    """

    id: str
    category: str
    turn: int
    arm: str
    prompt_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> Key:
        """What it answers."""
        return self.id, self.turn, self.arm


class Journal:
    """The entries of a results file, read when opened and appended to. The last entry for a key counts.

    A last line without its end was being written when the run stopped, or is being written now: it is left out,
    and cut off by who goes on with the run.

    Args:
        path: need not exist yet.

    Raises:
        ValueError: another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        whole = path.read_bytes() if path.exists() else b""
        complete = whole[: whole.rfind(b"\n") + 1]
        self._cut = len(complete) if complete != whole else None
        self._entries = {entry.key: entry for entry in _stored(path, complete)}

    def __contains__(self, key: Key) -> bool:
        """Whether there is an answer, so that it need not be asked again; an error is none."""
        return key in self._entries and self._entries[key].error is None

    def __getitem__(self, key: Key) -> Entry:
        return self._entries[key]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def append(self, entry: Entry) -> None:
        """Write an entry and see to it that it is on the disk."""
        if self._cut is not None:
            log.warning("%s: the last line was half written and is dropped", self.path)
            os.truncate(self.path, self._cut)
            self._cut = None
        line = json.dumps(asdict(entry), ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[entry.key] = entry


def _stored(path: Path, content: bytes) -> Iterator[Entry]:
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            yield Entry(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result of this job: {error}") from error
