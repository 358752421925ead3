"""Which replies a target is asked for, so that something can learn from them."""

from __future__ import annotations

import ast
import json
import logging
import random
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments import data
from experiments.prompt import Prompt

log = logging.getLogger(__name__)

PROMPTS = Path(__file__).parent / "prompts"
VARIED, GRID = PROMPTS / "varied.jsonl", PROMPTS / "grid.json"
HELD = 10  # of so many sources of prompts one is held out
LINES = 24  # of a chunk of code
LONG = 96  # of one that something is asked about
# Of the standard library: what is there on every machine, and no package that is installed beside it.
LIBRARY = (
    *("*.py", "asyncio/*.py", "collections/*.py", "concurrent/**/*.py", "email/*.py", "http/*.py", "json/*.py"),
    *("logging/*.py", "multiprocessing/*.py", "pydoc_data/topics.py", "unittest/*.py", "urllib/*.py"),
)
# What is asked about code, in turns; None has it continued as it stands. Every other time it is the beginning of a
# function, else lines from anywhere.
TASKS = (
    None,
    None,
    None,
    "Explain in plain words what this text from a Python module does:\n\n{}",
    None,
    "Summarize:\n\n{}",
    None,
    "Rewrite this, shorter and with other names:\n\n{}",
)


@dataclass(frozen=True)
class Request:
    """A reply to ask the target for."""

    prompt: Prompt
    greedy: bool
    held: bool


def library(count: int, seed: int) -> list[Prompt]:
    """Chunks of Python's standard library, some to be continued as they stand, some with a task."""
    folder, rng = Path(sysconfig.get_path("stdlib")), random.Random(seed)
    files = sorted(file for pattern in LIBRARY for file in folder.glob(pattern))
    prompts = []
    for index in range(count):
        file, task = rng.choice(files), TASKS[index % len(TASKS)]
        text = part(file, index % 2 == 0, LINES if task is None else LONG, rng)
        said, source = text if task is None else task.format(text), file.relative_to(folder).as_posix()
        if text.strip():
            prompts.append(Prompt(f"library/{index}", "code", (said,), task is not None, source))
    return prompts


def part(file: Path, opening: bool, lines: int, rng: random.Random) -> str:
    """Some of a file: where it is asked for and there is one, a function's signature and docstring, else lines."""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = openings(file) if opening else ()
    return rng.choice(found) if found else chunk(text, lines, rng)


@cache
def openings(file: Path) -> tuple[str, ...]:
    """Signature and docstring of every function of a file that has both, to be completed."""
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines(keepends=True)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    return tuple(
        textwrap.dedent("".join(lines[node.lineno - 1 : node.body[0].end_lineno]))
        for node in functions
        if ast.get_docstring(node) and len(node.body) > 1
    )


def chunk(text: str, most: int, rng: random.Random) -> str:
    """A third to all of so many lines of a file, from anywhere in it."""
    lines = text.splitlines(keepends=True)
    start = rng.randrange(max(1, len(lines) - most))
    return "".join(lines[start : start + rng.randint(most // 3, most)])


def own(seed: int) -> list[Prompt]:
    """The project's own prompts to learn from: varied ones, and of each grid every task on every topic.

    None of them is among those that results are measured on.
    """
    grids = json.loads(GRID.read_text(encoding="utf-8"))
    pairs = [(task, topic) for grid in grids for task in grid["tasks"] for topic in grid["topics"]]
    said = [
        Prompt(f"grid/{n}", "grid", (task.format(topic),), source=topic)
        for n, (task, topic) in enumerate(pairs, start=1)
    ]
    prompts = [*data.jsonl(VARIED), *said]
    random.Random(seed).shuffle(prompts)
    return prompts


def requests(
    files: Sequence[Path], count: int, seed: int, further: Sequence[Sequence[Prompt]] = ()
) -> Iterator[Request]:
    """``count`` requests, from every file, the standard library and further sources in turns.

    A source that is used up begins again. About half of the replies are greedy and the others are sampled, but
    none that repeats a prompt is greedy: it would be the same again. Of prompts that are made of one thing all are
    held out or none is. A prompt that an earlier source has too, or that results are measured on (the demo's), is
    left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a source has no prompt that is left.
    """
    rng = random.Random(seed)
    sources: list[Sequence[Prompt]] = []
    for file in files:
        found = data.jsonl(file)
        rng.shuffle(found)
        sources.append(found)
    sources += further
    sources = fresh([*sources, library(-(-count // (len(sources) + 1)), seed)])
    held = {made_of(prompt) for source in sources for prompt in aside(source)}
    for number in range(count):
        index, source = number // len(sources), sources[number % len(sources)]
        prompt, greedy = source[index % len(source)], rng.random() < 0.5
        yield Request(prompt, greedy and index < len(source), made_of(prompt) in held)


def aside(source: Sequence[Prompt]) -> list[Prompt]:
    """The first of all prompts that are made of one thing, for every tenth thing."""
    return list({made_of(prompt): prompt for prompt in reversed(source)}.values())[::-1][::HELD]


def made_of(prompt: Prompt) -> str:
    """What a prompt was made of; itself, if of nothing else."""
    return prompt.source or prompt.id


def fresh(sources: Sequence[Sequence[Prompt]]) -> list[Sequence[Prompt]]:
    """The sources without what an earlier one asks too, so that nothing that is held out is also learnt from.

    Raises:
        ValueError: nothing is left of one.
    """
    seen = {prompt.turns[0] for prompt in data.demo()}
    kept: list[Sequence[Prompt]] = []
    for source in filter(None, sources):
        some = {prompt.turns[0]: prompt for prompt in source if prompt.turns[0] not in seen}
        if not some:
            raise ValueError(
                f"no prompt is left of {source[0].id} and those behind it: others ask the same, or results are "
                "measured on them"
            )
        if len(some) < len(source):
            log.warning("%s and those behind it: %d repeat others", source[0].id, len(source) - len(some))
        seen |= some.keys()
        kept.append(list(some.values()))
    return kept
