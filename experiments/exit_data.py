"""What exits are trained on: states of the target while it answers questions and continues code.

T taps, P places, X hidden size.
"""

from __future__ import annotations

import random
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments import data
from experiments.prompt import Prompt
from experiments.replies import Text, ids_of, replies, states
from specdec import Sampling
from verifiers import FullVerifier

HELD = 10  # one prompt in so many is held out
LINES = 24  # of a chunk of code
# Of the standard library: what is there on every machine, and no package that is installed beside it.
LIBRARY = (
    *("*.py", "asyncio/*.py", "collections/*.py", "concurrent/**/*.py", "email/*.py", "http/*.py", "json/*.py"),
    *("logging/*.py", "multiprocessing/*.py", "pydoc_data/topics.py", "unittest/*.py", "urllib/*.py"),
)
TASKS = (
    None,  # to continue
    "Explain in plain words what this text from a Python module does:\n\n{}",
    None,
    "Summarize:\n\n{}",
    "Rewrite this, shorter and with other names:\n\n{}",
)


@dataclass(frozen=True)
class Request:
    """A reply to ask the target for."""

    prompt: Prompt
    greedy: bool
    held: bool


@dataclass(frozen=True)
class Writing:
    """How the target answers.

    Attributes:
        new_tokens: of a reply, at most.
        rows: replies at a time.
        longest: tokens of a prompt; longer ones are left out.
        temperature: of sampled replies.
        seed: of their noise.
    """

    new_tokens: int = 128
    rows: int = 32
    longest: int = 400
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Pool:
    """States behind all taps, the last of which is the last layer.

    Attributes:
        train: [T, P, X], to learn from.
        held: [T, P, X], of other prompts.
    """

    train: Tensor
    held: Tensor


def library(count: int, seed: int) -> list[Prompt]:
    """Chunks of Python's standard library, some to be continued as they stand, some with a task."""
    folder, rng = Path(sysconfig.get_path("stdlib")), random.Random(seed)
    files = sorted(file for pattern in LIBRARY for file in folder.glob(pattern))
    chunks = [chunk(rng.choice(files).read_text(encoding="utf-8", errors="replace"), rng) for _ in range(count)]
    said = [(text, TASKS[index % len(TASKS)]) for index, text in enumerate(chunks) if text.strip()]
    return [
        Prompt(f"library/{index}", "code", (text if task is None else task.format(text),), chat=task is not None)
        for index, (text, task) in enumerate(said)
    ]


def chunk(text: str, rng: random.Random) -> str:
    """Some lines of a file, from anywhere in it."""
    lines = text.splitlines(keepends=True)
    start = rng.randrange(max(1, len(lines) - LINES))
    return "".join(lines[start : start + rng.randint(LINES // 3, LINES)])


def requests(files: Sequence[Path], count: int, seed: int) -> Iterator[Request]:
    """``count`` requests, from every file and the standard library in turns.

    A source that is used up begins again. Half of the replies are greedy and half are sampled, but none that
    repeats a prompt is greedy: it would be the same again.
    """
    rng = random.Random(seed)
    sources = [data.jsonl(file) for file in files]
    for source in sources:
        rng.shuffle(source)
    sources.append(library(-(-count // (len(sources) + 1)), seed))
    for number in range(count):
        index, source = number // len(sources), sources[number % len(sources)]
        fresh = index < len(source)
        yield Request(source[index % len(source)], fresh and index % 2 == 0, index % len(source) % HELD == 0)


def collect(
    verifier: FullVerifier,
    asked: Sequence[Request],
    how: Writing,
    layers: Sequence[int],
    say: Callable[[str], None],
) -> Pool:
    """Ask the target, and read its replies: states in its own type, in host memory.

    Args:
        verifier: runs the target.
        asked: what to ask for.
        how: how it is to answer.
        layers: behind which there is to be an exit; the last layer comes by itself.
        say: hears how long it will take.

    Raises:
        ValueError: no reply is left to train on, or none to hold out.
    """
    taps = (*layers, verifier.model.network.depth)
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    start, done = time.perf_counter(), 0
    for held, texts in written(verifier, asked, how):
        parts[held].append(states(verifier.model, texts, taps).cpu())
        if not done:  # the longest prompts: the others take less
            minutes = (time.perf_counter() - start) * len(asked) / len(texts) / 60
            say(f"writing and reading {len(asked)} replies: at most {minutes:.1f} minutes")
        done += len(texts)
    if not all(parts.values()):
        raise ValueError("no prompt is left to train on or to hold out: ask for more replies, or longer prompts")
    return Pool(torch.cat(parts[False], 1), torch.cat(parts[True], 1))


def written(verifier: FullVerifier, asked: Sequence[Request], how: Writing) -> Iterator[tuple[bool, list[Text]]]:
    """Replies, and whether they are held out; prompts of like length together."""
    for held in (False, True):
        for greedy in (True, False):
            some = [ids_of(r.prompt, verifier) for r in asked if (r.held, r.greedy) == (held, greedy)]
            prompts = sorted((ids for ids in some if len(ids) <= how.longest), key=len, reverse=True)
            sampling = Sampling(temperature=0.0 if greedy else how.temperature)
            for texts in replies(verifier, prompts, how.new_tokens, how.rows, sampling, how.seed):
                yield held, texts
