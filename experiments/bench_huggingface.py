"""What decoding costs in Hugging Face's ``generate``, on the same modules."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.bench_arms import PREFILL, Sample, Window
from experiments.stopwatch import now


@dataclass(frozen=True)
class HuggingFace:
    """``generate``, greedy, with its own attention and cache; its streamer tells when each round ends.

    Attributes:
        module: the target.
        new_tokens: per generation, end tokens or not.
        options: more of what ``generate`` takes.
    """

    module: Any
    new_tokens: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, prompt: list[int]) -> Sample:
        device, arrivals = self.module.device, Arrivals()
        tokens_1S = torch.tensor([prompt], device=device)
        start = now(device)
        whole_1S = self.module.generate(
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
        """The rounds but the first, which reads the prompt, and the last, which the end may cut.

        Raises ValueError where there are none.
        """
        last = len(self._times) - 1
        if last <= PREFILL:  # the prompt itself arrives too, before the round that reads it
            raise ValueError("too few rounds to time: raise peer_tokens")
        counts = self._counts[PREFILL:last]
        return Window(self._times[last - 1] - self._times[PREFILL - 1], sum(counts), len(counts))


def assisted(assistant: Any, length: int) -> dict[str, Any]:
    """What ``generate`` takes to draft ``length`` tokens per round with another module."""
    chosen = assistant.generation_config
    chosen.num_assistant_tokens, chosen.num_assistant_tokens_schedule = length, "constant"
    chosen.assistant_confidence_threshold = 0.0
    return {"assistant_model": assistant}
