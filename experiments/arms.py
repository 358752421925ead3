"""What is compared: ways to decode one prompt with the same target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

import specdec
from specdec import Metrics, Sampling, Trace
from specdec.acceptance import Match
from specdec.protocols import AcceptanceRule, Channel, Drafter, Forecast
from specdec.trace import Round
from verifiers import FullVerifier

PLAIN = "plain"


@dataclass(frozen=True)
class Decoding:
    """How every arm decodes.

    Attributes:
        max_new_tokens: per reply.
        sampling: the law to decode under.
        acceptance: the rule of the arms that speculate.
        stop: token ids that end a reply, besides the model's own end tokens.
    """

    max_new_tokens: int
    sampling: Sampling
    acceptance: AcceptanceRule
    stop: tuple[int, ...] = ()

    @property
    def reproducible(self) -> bool:
        """Whether a reply's tokens depend on the prompt and the seed alone, whatever is drafted."""
        return self.sampling.greedy or isinstance(self.acceptance, Match)


@dataclass(frozen=True)
class Reply:
    """New tokens (the end token included), the text they stand for, what they took, and what happened when."""

    tokens: list[int]
    text: str
    metrics: Metrics
    trace: Trace


class Arm(Protocol):
    """One way to decode."""

    @property
    def name(self) -> str:
        """What the tables call it."""
        ...

    def __call__(self, prompt: list[int], decoding: Decoding, seed: int) -> Reply:
        """Decode one prompt, given as token ids."""
        ...

    def repeats_plain(self, decoding: Decoding) -> bool:
        """Whether its tokens should be those of plain decoding, one by one."""
        ...

    @property
    def exact(self) -> bool:
        """Whether it rounds as plain decoding does, so that no rounding explains another token."""
        ...


@dataclass(frozen=True)
class EngineArm:
    """A drafter through this project's engine: in turns with the target, or ahead where there is a forecast."""

    name: str
    verifier: FullVerifier
    drafter: Drafter
    forecast: Forecast | None = None
    channel: Channel | None = None

    @property
    def virtual(self) -> bool:
        """Whether its times are computed from costs."""
        return self.channel is not None and self.channel.costs is not None

    def __call__(self, prompt: list[int], decoding: Decoding, seed: int) -> Reply:
        result = specdec.generate(
            self.verifier,
            self.drafter,
            prompt,
            decoding.max_new_tokens,
            sampling=decoding.sampling,
            acceptance=decoding.acceptance,
            seed=seed,
            stop=decoding.stop,
            forecast=self.forecast,
            channel=self.channel,
        )
        return Reply(result.row(), str(result.text or ""), result.metrics, result.trace)

    def repeats_plain(self, decoding: Decoding) -> bool:
        return decoding.reproducible

    @property
    def exact(self) -> bool:
        return self.verifier.width is not None


@dataclass(frozen=True)
class HuggingFaceArm:
    """Hugging Face's own ``generate`` on the same module in memory, with its own attention and cache.

    What plain decoding gains over it is the engine's doing, what a drafter gains over plain decoding is
    speculation's. When sampling it draws from PyTorch's generator: equal in law only.
    """

    name: str
    verifier: FullVerifier
    exact = False

    def __call__(self, prompt: list[int], decoding: Decoding, seed: int) -> Reply:
        module: Any = self.verifier.model.network.module
        tokens_1S = torch.tensor([prompt], device=self.verifier.device)
        torch.manual_seed(seed)
        trace = Trace()
        with torch.inference_mode(), trace.running({"target": (module,)}):
            whole_1S = module.generate(
                tokens_1S, attention_mask=torch.ones_like(tokens_1S), **self._options(decoding)
            )
            tokens = whole_1S[0, len(prompt) :].tolist()
        trace.rounds += [Round(row=0, drafted=0, nodes=0, accepted=0, committed=1) for _ in tokens]
        tokenizer: Any = self.verifier.tokenizer
        return Reply(tokens, tokenizer.decode(tokens, skip_special_tokens=True), Metrics.of(trace), trace)

    def repeats_plain(self, decoding: Decoding) -> bool:
        return decoding.sampling.greedy

    def _options(self, decoding: Decoding) -> dict[str, Any]:
        # All are named: what is not would come from the checkpoint's own generation config.
        sampling, ends = decoding.sampling, [*self.verifier.end_tokens, *decoding.stop]
        law = {
            "do_sample": not sampling.greedy,
            "temperature": 1.0 if sampling.greedy else sampling.temperature,
            "top_k": 50 if sampling.greedy else sampling.top_k or 0,  # greedy ignores it; 50 spares a warning
            "top_p": 1.0 if sampling.greedy else sampling.top_p,
            "min_p": None if sampling.greedy else sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        }
        pad = getattr(self.verifier.tokenizer, "pad_token_id", None)
        return {
            **law,
            "num_beams": 1,
            "max_new_tokens": decoding.max_new_tokens,
            "eos_token_id": ends or None,
            "pad_token_id": next((token for token in (pad, *ends) if token is not None), 0),
        }


BASELINES = {"hf_generate": HuggingFaceArm}
