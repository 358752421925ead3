"""What decoding costs: our engine without and with speculation, on one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

import specdec
from drafters import ModelDrafter, NullDrafter
from experiments.arms import PLAIN
from experiments.stopwatch import forget_peak, now, peak, reserved
from specdec import Trace
from specdec.protocols import Drafter
from verifiers import FullVerifier

# The rounds in which target and drafter read the prompt.
PREFILL = 2


@dataclass(frozen=True)
class Window:
    """The rounds of a generation in which nobody reads the prompt and which its end does not cut.

    Attributes:
        seconds: from the end of the round before to the end of the last.
        tokens, rounds: committed in it.
        target, draft: seconds in verification and in drafting; None where nobody looked.
    """

    seconds: float
    tokens: int
    rounds: int
    target: float | None = None
    draft: float | None = None


@dataclass(frozen=True)
class Sample:
    """One generation: its new tokens, wall seconds with prefill, and steady part."""

    tokens: list[int]
    seconds: float
    window: Window


class BenchArm(Protocol):
    """One way to decode."""

    @property
    def name(self) -> str:
        """What the tables call it."""
        ...

    @property
    def length(self) -> int:
        """Tokens drafted per round, 0 without a drafter that we time."""
        ...

    def __call__(self, prompt: list[int]) -> Sample:
        """Decode one prompt."""
        ...


@dataclass(frozen=True)
class OurArm:
    """This engine, greedy, with a drafter."""

    name: str
    verifier: FullVerifier
    drafter: Drafter
    new_tokens: int
    length: int = 0

    def __call__(self, prompt: list[int]) -> Sample:
        device = self.verifier.device
        start = now(device)
        result = specdec.generate(self.verifier, self.drafter, prompt, self.new_tokens)
        return Sample(result.row(), now(device) - start, steady(result.trace))


def steady(trace: Trace) -> Window:
    """The steady part of a trace of one row. Raises ValueError where too few rounds are left."""
    committed = [entry.committed for entry in trace.rounds]
    last = len(committed) - 1  # the round that the end may cut
    if last <= PREFILL:
        raise ValueError(f"{len(committed)} rounds are too few to time: raise new_tokens")
    target = [span for span in trace.spans if span.lane == "target"]
    start, end = target[PREFILL - 1].end, target[last - 1].end
    draft = [span for span in trace.spans if span.lane == "drafter" and start <= span.start < end]
    return Window(
        end - start,
        sum(committed[PREFILL:last]),
        last - PREFILL,
        sum(span.seconds for span in target[PREFILL:last]),
        sum(span.seconds for span in draft),
    )


def our_arms(
    verifier: FullVerifier, drafter: ModelDrafter, lengths: Sequence[int], new_tokens: int
) -> list[OurArm]:
    """Plain decoding, then speculation with drafts of each length, on the same two models."""
    made = [OurArm(PLAIN, verifier, NullDrafter(), new_tokens)]
    for length in lengths:
        part = ModelDrafter(drafter.model, length=length, tokenizer=drafter.tokenizer)
        made.append(OurArm(f"serial k={length}", verifier, part, new_tokens, length))
    return made


@dataclass(frozen=True)
class Usage:
    """Bytes of memory: the most during a generation, and what PyTorch holds after it (None but on a GPU)."""

    peak: int
    reserved: int | None


def measured(arm: BenchArm, prompt: list[int], device: torch.device) -> tuple[Sample, Usage]:
    """A generation and the memory that it took."""
    forget_peak(device)
    sample = arm(prompt)
    return sample, Usage(peak(device), reserved(device))
