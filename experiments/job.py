"""The main job's parts, and its loop: every arm on every prompt, in turns."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from experiments.arms import PLAIN, Arm, Decoding
from experiments.journal import Entry, Journal
from experiments.prompt import Prompt
from specdec import Trace
from specdec.prompts import encode
from verifiers import FullVerifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is run.

    Attributes:
        verifier: the target.
        arms: plain decoding first; names are unique.
        prompts: what is decoded.
        decoding: how.
        seed: of all randomness.
        virtual: whether times are computed from costs (``specdec.channel.Simulated``), and none is taken.
    """

    verifier: FullVerifier
    arms: tuple[Arm, ...]
    prompts: tuple[Prompt, ...]
    decoding: Decoding
    seed: int
    virtual: bool = False

    def steps(self, prompt: Prompt, shift: int = 0) -> list[tuple[int, Arm]]:
        """The turns of a prompt, each with every arm. ``shift`` says how far the arms are rotated."""
        shift %= len(self.arms)
        order = self.arms[shift:] + self.arms[:shift]
        return [(turn, arm) for turn in range(len(prompt.turns)) for arm in order]


def run(job: Job, journal: Journal, advance: Callable[[int], object], traces: dict[str, Trace]) -> None:
    """Answer what the journal lacks. The order of the arms rotates from prompt to prompt.

    A prompt that an arm fails on is recorded as failed and left; the others run.

    Args:
        job: what to run.
        journal: what is done, and where answers go.
        advance: called with the number of replies that were settled.
        traces: takes that of every arm's first reply, by its name.
    """
    for index, prompt in enumerate(job.prompts):
        steps = job.steps(prompt, index)
        for done, (turn, arm) in enumerate(steps):
            if (prompt.id, turn, arm.name) not in journal:
                entry = attempt(job, prompt, turn, arm, journal, traces)
                journal.append(entry)
                if entry.error is not None:
                    log.error("%s failed with %s and is left out: %s", prompt.id, arm.name, entry.error)
                    advance(len(steps) - done)
                    break
            advance(1)


def attempt(job: Job, prompt: Prompt, turn: int, arm: Arm, journal: Journal, traces: dict[str, Trace]) -> Entry:
    """One arm's answer to one turn, or why there is none."""
    blank = Entry(prompt.id, prompt.category, turn, arm.name)
    try:
        ids = prompt_ids(job, prompt, turn, journal)
        reply = arm(ids, job.decoding, seed_of(job.seed, prompt.id, turn))
    except Exception as error:  # one prompt that does not fit must not cost the others
        log.debug("%s failed with %s", prompt.id, arm.name, exc_info=error)
        return replace(blank, error=f"{type(error).__name__}: {error}")
    traces.setdefault(arm.name, reply.trace)
    metrics = reply.metrics.as_dict()
    return replace(blank, prompt_tokens=len(ids), tokens=reply.tokens, text=reply.text, metrics=metrics)


def prompt_ids(job: Job, prompt: Prompt, turn: int, journal: Journal) -> list[int]:
    """What goes in at a turn. The earlier replies in it are plain decoding's, for every arm."""
    replies = [journal[prompt.id, earlier, PLAIN].text for earlier in range(turn)]
    tokenizer = job.verifier.tokenizer
    if prompt.chat and getattr(tokenizer, "chat_template", None):
        return encode(messages(prompt.turns[: turn + 1], replies), tokenizer)[0][0]
    # Text to continue, or a target that knows no chat.
    text = "".join(said + reply for said, reply in zip(prompt.turns[: turn + 1], [*replies, ""], strict=True))
    return encode(text, tokenizer)[0][0]


def messages(turns: tuple[str, ...], replies: list[str]) -> list[dict[str, str]]:
    """A conversation, the user's last turn still to be answered."""
    said: list[dict[str, str]] = []
    for turn, reply in zip(turns, [*replies, ""], strict=True):
        said += [{"role": "user", "content": turn}, {"role": "assistant", "content": reply}]
    return said[:-1]


def seed_of(seed: int, prompt: str, turn: int) -> int:
    """A seed for one reply, the same for every arm, and whichever prompts are run."""
    digest = hashlib.sha256(f"{seed}/{prompt}/{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def finished(job: Job, journal: Journal) -> Iterator[Entry]:
    """The entries of the prompts that every arm has answered in full."""
    for prompt in job.prompts:
        keys = [(prompt.id, turn, arm.name) for turn, arm in job.steps(prompt)]
        if all(key in journal for key in keys):
            yield from (journal[key] for key in keys)


def failed(job: Job, journal: Journal) -> dict[str, str]:
    """Why prompts have failed, by id."""
    ours = {prompt.id for prompt in job.prompts}
    return {entry.id: f"{entry.arm}: {entry.error}" for entry in journal if entry.error and entry.id in ours}
