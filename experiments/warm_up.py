"""What happens once, before anything is timed."""

from __future__ import annotations

from dataclasses import replace

from experiments.arms import HuggingFaceArm
from experiments.job import Job, messages
from experiments.prompt import Prompt
from specdec.prompts import encode
from specdec.stage import WIDTHS, reading_width

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
    """A length of each size that prompts may have, the longest first: caches then stay where they are for all."""
    network, new = job.verifier.model.network, job.decoding.max_new_tokens
    found: dict[int, int] = {}
    for prompt in job.prompts:
        for turn, shortest in enumerate(lengths(job, prompt)):
            longest = shortest + turn * new  # if the earlier replies are as long as they may be
            for length in (shortest, longest, *(width - 1 for width in WIDTHS if shortest < width - 1 < longest)):
                if network.max_positions is None or length + new <= network.max_positions:
                    found[reading_width(length)] = max(length, found.get(reading_width(length), 0))
    return sorted(found.values(), reverse=True)


def lengths(job: Job, prompt: Prompt) -> list[int]:
    """Tokens of a prompt at every turn, with empty replies to the earlier ones."""
    tokenizer, said = job.verifier.tokenizer, []
    for turn in range(len(prompt.turns)):
        if prompt.chat and getattr(tokenizer, "chat_template", None):
            ids = encode(messages(prompt.turns[: turn + 1], [""] * turn), tokenizer)[0][0]
        else:
            ids = encode("".join(prompt.turns[: turn + 1]), tokenizer)[0][0]
        said.append(len(ids))
    return said
