"""How a target answers requests: in portions, each of which can be written by itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.replies import Text, ids_of, replies
from experiments.requests import Request
from specdec import Sampling
from verifiers import FullVerifier

log = logging.getLogger(__name__)


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
class Portion:
    """Prompts that are answered together.

    Attributes:
        prompts: token ids.
        held: whether their replies are held out.
        sampling: the law to decode under.
        new_tokens: of a reply, at most.
        seed: of the noise.
    """

    prompts: tuple[tuple[int, ...], ...]
    held: bool
    sampling: Sampling
    new_tokens: int
    seed: int


def portions(verifier: FullVerifier, asked: Sequence[Request], how: Writing) -> list[Portion]:
    """What is asked, prompts of like length together, the longest first; what is empty or too long is left out."""
    found, size = [], 0
    for held in (False, True):
        for greedy in (True, False):
            some = [ids_of(r.prompt, verifier) for r in asked if (r.held, r.greedy) == (held, greedy)]
            fit = sorted((tuple(ids) for ids in some if 0 < len(ids) <= how.longest), key=len, reverse=True)
            sampling, size = Sampling(temperature=0.0 if greedy else how.temperature), size + len(fit)
            found += [
                Portion(tuple(fit[start : start + how.rows]), held, sampling, how.new_tokens, how.seed + start)
                for start in range(0, len(fit), how.rows)
            ]
    if size < len(asked):
        log.warning(
            "%d of %d prompts are longer than %d tokens, or empty", len(asked) - size, len(asked), how.longest
        )
    return found


def answered(verifier: FullVerifier, portion: Portion) -> list[Text]:
    """The target's replies to a portion."""
    prompts, rows = [list(prompt) for prompt in portion.prompts], len(portion.prompts)
    return next(replies(verifier, prompts, portion.new_tokens, rows, portion.sampling, portion.seed))
