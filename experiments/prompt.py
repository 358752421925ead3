"""A prompt, how the rows of a source become prompts, and how a few are chosen among many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeVar

from experiments.records import BadRecordError, Record, parse, read_lines

log = logging.getLogger(__name__)

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Prompt:
    """What a user says.

    Attributes:
        id: unique among the prompts loaded together.
        category: the group that results are reported by.
        turns: the user's messages. Each is answered before the next one is said.
        chat: whether the turns go through the model's chat template. If not, they are text to continue.
        source: what it was made of, as others may be.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    chat: bool = True
    source: str | None = None


def read(path: Path, to_prompt: Callable[[int, Record], Prompt]) -> list[Prompt]:
    """The prompts of a JSONL file, made by `to_prompt(line number, record)`.

    Raises:
        ValueError: it has no usable line.
    """
    return collect(str(path), read_lines(path), lambda number, line: to_prompt(number, parse(line)))


def collect(
    source: str, rows: Iterable[tuple[int, _Row]], to_prompt: Callable[[int, _Row], Prompt]
) -> list[Prompt]:
    """The prompts of the usable rows; the others, and those that repeat an id, are logged and left out.

    Raises:
        ValueError: no row is usable.
    """
    prompts: dict[str, tuple[int, Prompt]] = {}
    for number, row in rows:
        try:
            prompt = to_prompt(number, row)
            if prompt.id in prompts:
                raise BadRecordError(f"id {prompt.id!r} is already that of line {prompts[prompt.id][0]}")
        except BadRecordError as fault:  # one bad line should not end a long run
            log.warning("%s, line %d skipped: %s", source, number, fault)
        else:
            prompts[prompt.id] = number, prompt
    if not prompts:
        raise ValueError(f"{source} has no usable line")
    return [prompt for _, prompt in prompts.values()]


def check_limit(limit: object) -> None:
    """Raise ValueError unless `limit` is None or a positive whole number."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0):
        raise ValueError(f"limit must be a positive whole number or null for all, not {limit!r}")


def only(prompts: list[Prompt], categories: Sequence[str] | None) -> list[Prompt]:
    """The prompts of some categories, or of the one that is named; all for None.

    Raises:
        ValueError: no category is given, or one that no prompt has.
    """
    if categories is None:
        return prompts
    wanted = {categories} if isinstance(categories, str) else set(categories)
    known = {prompt.category: None for prompt in prompts}
    if not wanted or not wanted <= known.keys():
        raise ValueError(f"categories must be among {', '.join(known)}, not {categories}")
    return [prompt for prompt in prompts if prompt.category in wanted]


def spread(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
    """All prompts in their order, or `limit` of them that cover the categories evenly."""
    return prompts if limit is None else round_robin(prompts)[:limit]


def round_robin(prompts: list[Prompt]) -> list[Prompt]:
    """One prompt of each category, then the next of each, and so on until all are in."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    return [prompt for prompt in chain.from_iterable(zip_longest(*groups.values())) if prompt is not None]
