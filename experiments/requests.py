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
HELD = 10  # one prompt in so many is held out
LINES = 24  # of a chunk of code
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
    chunks = [part(rng.choice(files), index % 2 == 0, rng) for index in range(count)]
    said = [(text, TASKS[index % len(TASKS)]) for index, text in enumerate(chunks) if text.strip()]
    return [
        Prompt(f"library/{index}", "code", (text if task is None else task.format(text),), chat=task is not None)
        for index, (text, task) in enumerate(said)
    ]


def part(file: Path, opening: bool, rng: random.Random) -> str:
    """Some of a file: where it is asked for and there is one, a function's signature and docstring."""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = openings(file) if opening else ()
    return rng.choice(found) if found else chunk(text, rng)


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


def chunk(text: str, rng: random.Random) -> str:
    """Some lines of a file, from anywhere in it."""
    lines = text.splitlines(keepends=True)
    start = rng.randrange(max(1, len(lines) - LINES))
    return "".join(lines[start : start + rng.randint(LINES // 3, LINES)])


def own(seed: int) -> list[Prompt]:
    """The project's own prompts to learn from: varied ones, and of each grid every task on every topic.

    None of them is among those that results are measured on.
    """
    grids = json.loads(GRID.read_text(encoding="utf-8"))
    pairs = [(task, topic) for grid in grids for task in grid["tasks"] for topic in grid["topics"]]
    said = [Prompt(f"grid/{n}", "grid", (task.format(topic),)) for n, (task, topic) in enumerate(pairs, start=1)]
    prompts = [*data.jsonl(VARIED), *said]
    random.Random(seed).shuffle(prompts)
    return prompts


def requests(
    files: Sequence[Path], count: int, seed: int, further: Sequence[Sequence[Prompt]] = ()
) -> Iterator[Request]:
    """``count`` requests, from every file, the standard library and further sources in turns.

    A source that is used up begins again. Half of the replies are greedy and half are sampled, but none that
    repeats a prompt is greedy: it would be the same again. A prompt that an earlier source has too, or that
    results are measured on (the demo's), is left out.

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
    for number in range(count):
        index, source = number // len(sources), sources[number % len(sources)]
        first = index < len(source)
        yield Request(source[index % len(source)], first and index % 2 == 0, index % len(source) % HELD == 0)


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
