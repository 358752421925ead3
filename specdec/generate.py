"""One call from prompts to text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from specdec.acceptance import Ratio
from specdec.channel import Inline
from specdec.channel.sides import absent
from specdec.duet import Duet
from specdec.guard import Guarded
from specdec.loop import pipelined, serial
from specdec.messages import Opening, moved
from specdec.metrics import Metrics
from specdec.noise import Noise, Still
from specdec.partner import Partner
from specdec.prompts import Prompt, encode
from specdec.protocols import AcceptanceRule, Channel, Drafter, Forecast, Verifier
from specdec.runtime import CachedModel
from specdec.runtime.clock import DeviceClock
from specdec.runtime.replay import Replay, current
from specdec.runtime.streams import Side
from specdec.sampling import Sampling
from specdec.sequences import Sequences
from specdec.stage import Stage
from specdec.trace import Step, Timed, Trace


@dataclass(frozen=True)
class Result:
    """What was generated.

    Attributes:
        tokens: int64 [B, longest], new tokens of every row, end token included, padded with the pad id
            (0 where the model has none).
        lengths: int64 [B], new tokens of every row.
        text: the new text, without special tokens: a string for one prompt, else a list; None without a
            tokenizer.
        metrics: what it took.
        trace: spans and rounds behind the metrics.
        lossless: whether the acceptance rule keeps the target's law.
    """

    tokens: Tensor
    lengths: Tensor
    text: str | list[str] | None
    metrics: Metrics
    trace: Trace
    lossless: bool

    def row(self, index: int = 0) -> list[int]:
        """New tokens of one row, without padding."""
        return self.tokens[index, : int(self.lengths[index])].tolist()


@torch.inference_mode()
def generate(
    verifier: Verifier,
    drafter: Drafter,
    prompts: Prompt | Sequence[Prompt],
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    acceptance: AcceptanceRule | None = None,
    seed: int = 0,
    stop: Sequence[int] | int | None = None,
    stream: Callable[[int, list[int]], None] | None = None,
    forecast: Forecast | None = None,
    channel: Channel | None = None,
) -> Result:
    """Decode prompts with a target and a drafter. The default is greedy.

    Args:
        verifier: runs the target.
        drafter: proposes tokens.
        prompts: a text, messages, or token ids; or a list of them, one row each, of any lengths. Text is
            continued as it stands, messages go through the chat template.
        max_new_tokens: per row.
        sampling: the law to decode under.
        acceptance: the rule, ``Ratio()`` if None.
        seed: of the noise. Equal seeds give equal tokens, on any device and in any schedule.
        stop: token ids that end a row, besides the model's own end tokens.
        stream: called as tokens are committed, with the row's index and its new tokens.
        forecast: which outcomes the drafter prepares for while the target works (see ``specdec.forecast``); None
            drafts and verifies in turns.
        channel: how target and drafter talk then (see ``specdec.channel``); ``Inline()`` if None.

    Raises:
        ValueError: an empty prompt, one that does not fit the model's positions, token ids outside the
            vocabulary, or a drafter that does not fit the target.
    """
    tokenizer = getattr(verifier, "tokenizer", None)
    rows, single = encode(prompts, tokenizer)
    check_ids(rows, verifier.vocab_size)
    ends = (*getattr(verifier, "end_tokens", ()), *([stop] if isinstance(stop, int) else stop or ()))
    accept = acceptance or Ratio()
    seq = Sequences.start(rows, max_new_tokens, ends, sampling, verifier.device)
    trace = Trace(listener=None if stream is None else Streamer(stream))
    if forecast is not None and verifier.replay is not None and isinstance(channel, Inline | None):
        seq = together(seq, drafter, verifier, accept, seed, trace, forecast)
    elif forecast is not None:
        seq = pipeline(seq, drafter, verifier, accept, seed, trace, forecast, channel or Inline())
    elif verifier.replay is None:
        seq = plainly(seq, drafter, verifier, accept, seed, trace)
    else:
        seq = replayed(seq, drafter, verifier, accept, seed, trace)
    return result(seq, trace, accept.lossless, tokenizer, single)


def plainly(
    seq: Sequences, drafter: Drafter, verifier: Verifier, accept: AcceptanceRule, seed: int, trace: Trace
) -> Sequences:
    """Decode with every operation launched by the host."""
    guarded = Guarded(drafter, trace)
    guarded.begin(verifier, seq)
    verifier.begin(seq, guarded.wants)
    with trace.running({"target": module(verifier), "drafter.model": module(drafter)}):
        return serial(seq, Timed(guarded, trace), verifier, accept, noise_for(seq, seed, accept), trace)


def pipeline(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    forecast: Forecast,
    channel: Channel,
) -> Sequences:
    """Decode while the drafter works on its own side of a channel."""
    verifier.begin(seq, exit=forecast.exit)
    with channel.link(drafter, forecast, verifier) as link, trace.running({"target": module(verifier)}):
        partner = Partner(link, trace, channel.patience)
        partner.open(opening(seq, verifier, accept, seed), verifier.device)
        return pipelined(seq, partner, verifier, accept, noise_for(seq, seed, accept), trace)


def together(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    forecast: Forecast,
) -> Sequences:
    """Decode while the drafter works on its own queue, of this device or another; rounds are replayed on both."""
    replay = cast(Replay, verifier.replay)
    guarded = Guarded(drafter, trace, replay)
    rows, slots = seq.tokens.shape
    seq = replace(seq.padded(verifier.model.room(rows, capacity(slots))), static=True)
    target = absent(drafter, verifier)
    if target.device not in replay.sides:
        replay.sides[target.device] = Side(verifier.device, target.device, replay.beside())
    side: Side = replay.sides[target.device]
    trace.lag = 1
    check_width(verifier, drafter)
    if seq.tokens.is_cuda:
        trace.clock = DeviceClock()
    with current(verifier.device), trace.running({}):
        theirs = moved(seq, side.drafter)
        with side(), trace.span("drafter"):  # a model reads the prompt
            guarded.begin(cast(Verifier, target), theirs)
        verifier.begin(seq, exit=forecast.exit)
        duet = Duet(drafter, guarded, forecast, side, trace)
        duet.open(theirs, noise_for(theirs, seed, accept, side.replay))
        stage = Stage(replay, trace, (verifier.model,), guarded.static, verifier.width)
        return pipelined(seq, duet, verifier, accept, noise_for(seq, seed, accept, replay), trace, stage)


def opening(seq: Sequences, verifier: Verifier, accept: AcceptanceRule, seed: int) -> Opening:
    """What the drafter's side must know of a generation."""
    return Opening(
        generation=time.monotonic_ns(),
        round=0,
        tokens=seq.tokens,
        lengths=seq.lengths,
        prompts=seq.prompts,
        limits=seq.limits,
        sampling=seq.sampling,
        seed=seed,
        coupled=accept.coupled,
        vocab_size=verifier.vocab_size,
    )


def replayed(
    seq: Sequences, drafter: Drafter, verifier: Verifier, accept: AcceptanceRule, seed: int, trace: Trace
) -> Sequences:
    """Decode with rounds replayed on the device, while the host reads what the one before has done."""
    replay = cast(Replay, verifier.replay)
    guarded = Guarded(drafter, trace, replay)
    rows, slots = seq.tokens.shape
    seq = replace(seq.padded(verifier.model.room(rows, capacity(slots))), static=True)
    drafts = getattr(drafter, "static", False)
    # A drafter on the host asks for the tokens themselves: nothing is won by not knowing them.
    trace.lag = 1 if drafts else 0
    check_width(verifier, drafter)
    if seq.tokens.is_cuda:
        trace.clock = DeviceClock()
    with current(verifier.device), trace.running({}):
        with trace.span("drafter"):  # a model reads the prompt
            guarded.begin(verifier, seq)
        verifier.begin(seq, guarded.wants)
        model = getattr(drafter, "model", None)
        models = (verifier.model, *([model] if isinstance(model, CachedModel) else []))
        stage = Stage(replay, trace, models, drafts, verifier.width)
        return serial(seq, guarded, verifier, accept, noise_for(seq, seed, accept, replay), trace, stage)


def check_width(verifier: Verifier, drafter: Drafter) -> None:
    """Raises ValueError where drafts do not fit the width of all forwards."""
    size = getattr(drafter, "size", 0)
    if verifier.width is not None and size >= verifier.width:
        raise ValueError(
            f"the target's width is {verifier.width}, but drafts have up to {size} tokens: it must be {size + 1}"
        )


def capacity(slots: int) -> int:
    """Token slots for rows of so many: few sizes, so that few recordings are made."""
    return max(512, 1 << (slots - 1).bit_length()) if slots <= 4096 else -(-slots // 4096) * 4096


def noise_for(seq: Sequences, seed: int, accept: AcceptanceRule, replay: Replay | None = None) -> Noise:
    """The noise of a generation; none when greedy."""
    if seq.sampling.greedy:
        return Still()
    if replay is not None:
        return replay.noise(seed, len(seq.tokens), seq.tokens.shape[1], accept.coupled, seq.tokens.device)
    rows_B = torch.arange(len(seq.lengths), device=seq.lengths.device)
    return Noise(seed, rows_B, seq.tokens.shape[1] + 1, accept.coupled)


def result(seq: Sequences, trace: Trace, lossless: bool, tokenizer: object, single: bool) -> Result:
    """What the user gets of the finished rows."""
    counts_B = seq.lengths - seq.prompts
    index_J = torch.arange(int(counts_B.max()), device=counts_B.device)
    where_BJ = (seq.prompts[:, None] + index_J).clamp(max=seq.tokens.shape[1] - 1)
    pad_id = getattr(tokenizer, "pad_token_id", None) or 0
    tokens_BJ = torch.where(index_J < counts_B[:, None], seq.tokens.gather(1, where_BJ), pad_id)
    answer = Result(tokens_BJ, counts_B, None, Metrics.of(trace), trace, lossless)
    if tokenizer is None:
        return answer
    texts = [tokenizer.decode(answer.row(b), skip_special_tokens=True) for b in range(len(tokens_BJ))]  # type: ignore[attr-defined]
    return Result(tokens_BJ, counts_B, texts[0] if single else texts, answer.metrics, trace, lossless)


def check_ids(rows: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Raises ValueError for token ids that the target does not have."""
    for index, row in enumerate(rows):
        wrong = [token for token in row if not 0 <= token < vocabulary]
        if wrong:
            raise ValueError(f"prompt {index} has token id {wrong[0]}, the target's ids are 0 to {vocabulary - 1}")


def module(part: object) -> torch.nn.Module | None:
    """The module whose forward is one step of a part's model, None where it has none."""
    network = getattr(getattr(part, "model", None), "network", None)
    return getattr(network, "module", None)


@dataclass(frozen=True)
class Streamer:
    """Hands newly committed tokens to a callback, row by row."""

    callback: Callable[[int, list[int]], None]

    def __call__(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.tokens:
                self.callback(step.row, step.tokens)
