"""One call from prompts to text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.acceptance import Ratio
from specdec.channel import Inline
from specdec.decode import ahead, in_turns
from specdec.metrics import Metrics
from specdec.prompts import Prompt, encode
from specdec.protocols import AcceptanceRule, Channel, Drafter, Forecast, Verifier
from specdec.report import Step
from specdec.sampling import Sampling
from specdec.sequences import Sequences
from specdec.trace import Trace


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
        channel: how target and drafter talk then (see ``specdec.channel``), and on which clock in either case;
            ``Inline()`` if None.

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
    channel = channel or Inline()
    if forecast is not None:
        seq = ahead(seq, drafter, verifier, accept, seed, trace, forecast, channel)
    else:
        seq = in_turns(seq, drafter, verifier, accept, seed, trace, channel)
    return result(seq, trace, accept.lossless, tokenizer, single)


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


@dataclass(frozen=True)
class Streamer:
    """Hands newly committed tokens to a callback, row by row."""

    callback: Callable[[int, list[int]], None]

    def __call__(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.tokens:
                self.callback(step.row, step.tokens)
