"""What decoding costs: our engine without and with speculation, and Hugging Face's, on one prompt at a time."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import specdec
from drafters import ModelDrafter, NullDrafter
from experiments.arms import PLAIN
from experiments.stopwatch import forget_peak, now, peak
from specdec import Trace
from specdec.protocols import Drafter
from specdec.runtime.replay import Replay
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


@dataclass(frozen=True)
class PeerArm:
    """Hugging Face's ``generate`` on the same weights, greedy, with its own attention and cache."""

    name: str
    verifier: FullVerifier
    new_tokens: int
    options: dict[str, Any]
    length: int = 0

    def __call__(self, prompt: list[int]) -> Sample:
        module: Any = self.verifier.model.network.module
        device, arrivals = self.verifier.device, Arrivals()
        tokens_1S = torch.tensor([prompt], device=device)
        start = now(device)
        whole_1S = module.generate(
            tokens_1S,
            attention_mask=torch.ones_like(tokens_1S),
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            streamer=arrivals,
            **self.options,
        )
        return Sample(whole_1S[0, len(prompt) :].tolist(), now(device) - start, arrivals.window)


class Arrivals:
    """Notes when new tokens arrive: what ``generate`` calls a streamer."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._counts: list[int] = []

    def put(self, tokens: Tensor) -> None:
        """The prompt first, then what each round adds."""
        self._times.append(time.perf_counter())
        self._counts.append(tokens.numel())

    def end(self) -> None:
        """Nothing is left to do."""

    @property
    def window(self) -> Window:
        """The rounds after the first, which reads the prompt. Raises ValueError where there are none."""
        if len(self._times) <= PREFILL:
            raise ValueError("too few rounds to time: raise peer_tokens")
        counts = self._counts[PREFILL:]
        return Window(self._times[-1] - self._times[1], sum(counts), len(counts))


def our_arms(
    verifier: FullVerifier, drafter: ModelDrafter, lengths: Sequence[int], new_tokens: int
) -> list[OurArm]:
    """Plain decoding, then speculation with drafts of each length, on the same two models."""
    made = [OurArm(PLAIN, apart(verifier), NullDrafter(), new_tokens)]
    for length in lengths:
        part = ModelDrafter(drafter.model, length=length, tokenizer=drafter.tokenizer)
        made.append(OurArm(f"serial k={length}", apart(verifier), part, new_tokens, length))
    return made


def apart(verifier: FullVerifier) -> FullVerifier:
    """The verifier with recordings of its own, so that what an arm costs does not depend on the others."""
    twin = copy.copy(verifier)
    twin.replay = None if verifier.replay is None else Replay()
    return twin


def peer_arms(
    verifier: FullVerifier, drafter: ModelDrafter, names: Sequence[str], new_tokens: int, length: int
) -> list[PeerArm]:
    """Those of Hugging Face's ways that are named. Raises ValueError for an unknown one."""
    assistant: Any = drafter.model.network.module
    ways: dict[str, dict[str, Any]] = {
        "generate": {},
        "static": {"cache_implementation": "static"},
        "assisted": {"assistant_model": assistant},
    }
    if wrong := [name for name in names if name not in ways]:
        raise ValueError(f"peers must be among {', '.join(ways)}, not {wrong[0]!r}")
    if "assisted" in names:
        chosen = assistant.generation_config
        chosen.num_assistant_tokens, chosen.num_assistant_tokens_schedule = length, "constant"
        chosen.assistant_confidence_threshold = 0.0
    return [PeerArm(f"hf {name}", verifier, new_tokens, ways[name]) for name in names]


def measured(arm: BenchArm, prompt: list[int], device: torch.device) -> tuple[Sample, int]:
    """A generation and the most memory that was allocated meanwhile, in bytes."""
    forget_peak(device)
    sample = arm(prompt)
    return sample, peak(device)
