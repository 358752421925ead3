"""What happens once, before anything is timed."""

from __future__ import annotations

from dataclasses import replace

from experiments.arms import HuggingFaceArm
from experiments.job import Job, messages
from experiments.prompt import Prompt
from specdec.decode import capacity
from specdec.prompts import encode
from specdec.stage import reading_width

TEXT = "One two three four, one two three four, one two three four, one two"
TOKENS = 16


def warm_up(job: Job, rounds: int) -> None:
    """Decode a few tokens with every arm, so that no prompt pays for what happens once.

    Where rounds are replayed that is more for each size of prompts: kernels are compiled and a round is played
    directly when one is met first, and recorded when it is met again.

    Raises:
        ValueError: an arm does not fit the target.
    """
    prompt = encode(TEXT, job.verifier.tokenizer)[0][0]
    decoding = replace(job.decoding, max_new_tokens=min(job.decoding.max_new_tokens, TOKENS))
    for _ in range(rounds):
        for arm in job.arms:
            arm(prompt, decoding, job.seed)
    if rounds and job.verifier.replay is not None:
        for length in sizes(job):
            filled = (prompt * (length // len(prompt) + 1))[:length]
            for arm in 2 * [arm for arm in job.arms if not isinstance(arm, HuggingFaceArm)]:
                arm(filled, job.decoding, job.seed)


def sizes(job: Job) -> list[int]:
    """A length of each size that the prompts have: what is recorded for one of them is played for all."""
    found: dict[tuple[int, int], int] = {}
    for prompt in job.prompts:
        for length in lengths(job, prompt):
            found.setdefault((reading_width(length), capacity(length + job.decoding.max_new_tokens)), length)
    return sorted(found.values())


def lengths(job: Job, prompt: Prompt) -> list[int]:
    """Tokens of a prompt at every turn, if the replies to the earlier ones are as long as they may be."""
    tokenizer, said = job.verifier.tokenizer, []
    for turn in range(len(prompt.turns)):
        if prompt.chat and getattr(tokenizer, "chat_template", None):
            ids = encode(messages(prompt.turns[: turn + 1], [""] * turn), tokenizer)[0][0]
        else:
            ids = encode("".join(prompt.turns[: turn + 1]), tokenizer)[0][0]
        said.append(len(ids) + turn * job.decoding.max_new_tokens)
    return said
