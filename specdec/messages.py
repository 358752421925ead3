"""What the two sides of a pipeline say to each other.

B rows, S token slots, N draft nodes, M = N + 1, K candidates per place, J tokens since the last message.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from specdec.hypotheses import Candidates
from specdec.runtime.held import flatten, rebuild
from specdec.sampling import Sampling
from specdec.trace import Span
from specdec.types import Advice, Draft, Want

VERSION = 4  # of all messages together: sides of different versions do not talk


@dataclass(frozen=True, kw_only=True)
class Dated:
    """When a message left, by the clock of its sender, and arrived, by that of the other side.

    Seconds (``time.perf_counter``); None where the connection did not look.
    """

    sent: float | None = None
    arrived: float | None = None


@dataclass(frozen=True)
class Opening(Dated):
    """To the drafter: a generation starts, or goes on after the drafter was away.

    Attributes:
        generation: which; messages of another are not for it.
        round: the first one that will be asked for.
        tokens: int64 [B, S], the rows.
        lengths, prompts, limits: int64 [B], as in ``Sequences``.
        sampling: the law the target decodes under.
        seed, coupled: of the noise.
        weighs: whether the acceptance rule looks at the drafter's laws.
        vocab_size: V of the target.
    """

    generation: int
    round: int
    tokens: Tensor
    lengths: Tensor
    prompts: Tensor
    limits: Tensor
    sampling: Sampling
    seed: int
    coupled: bool
    weighs: bool
    vocab_size: int


@dataclass(frozen=True)
class Ready(Dated):
    """From the drafter: it has read the rows, or cannot draft for this target.

    Attributes:
        generation: which.
        refusal: why it cannot; empty where it can.
        wants: what it would like from the target's forward.
    """

    generation: int
    refusal: str = ""
    wants: tuple[Want, ...] = ()


@dataclass(frozen=True)
class Early(Dated):
    """To the drafter, from inside the target's forward: what the early exit says of the window."""

    generation: int
    round: int
    candidates: Candidates

    @property
    def size(self) -> int:
        """Nodes of the window that it is about: the drafter's last one, or none where that was lost."""
        return self.candidates.window.shape[1]


@dataclass(frozen=True)
class Outcome(Dated):
    """To the drafter: what became of a window.

    Attributes:
        generation, round: which.
        since: int64 [B], how many tokens of each row the drafter is known to have.
        tokens: int64 [B, J], those behind them.
        before: int64 [B], committed length before the round.
        lengths: int64 [B], and after it.
        nodes: int64 [B], last accepted node of the drafter's window, ``tree.ROOT`` where none was.
        ended: bool [B].
        advice: what the drafter wanted to see of the target in this round; the prompt's comes with the first one.
    """

    generation: int
    round: int
    since: Tensor
    tokens: Tensor
    before: Tensor
    lengths: Tensor
    nodes: Tensor
    ended: Tensor
    advice: Advice | None = None


@dataclass(frozen=True)
class Window(Dated):
    """From the drafter: the next draft.

    Attributes:
        generation, round: of the outcome that it answers.
        draft: the window.
        hit: bool [B], whether it had been prepared.
        branches: outcomes that were prepared, all rows that had not ended together.
        spans: what was done for it, on the drafter's clock; see ``specdec.transit``.
        faults: what went wrong.
        lacking: whether tokens of the rows never came: there is no draft before an opening tells them.
    """

    generation: int
    round: int
    draft: Draft
    hit: Tensor
    branches: int = 0
    spans: tuple[Span, ...] = ()
    faults: tuple[str, ...] = field(default=())
    lacking: bool = False


@dataclass(frozen=True)
class Closing(Dated):
    """To the drafter: it is not needed any more."""


T = TypeVar("T")
M = TypeVar("M", bound=Dated)
Message = Opening | Ready | Early | Outcome | Window | Closing


def leaving(message: M) -> M:
    """A message that is sent now."""
    return replace(message, sent=time.perf_counter())


def arriving(message: M) -> M:
    """A message that is there now."""
    return replace(message, arrived=time.perf_counter())


def journey(message: Early | Outcome) -> tuple[Span, ...]:
    """Its way to the drafter, nothing where the connection did not look."""
    if message.sent is None or message.arrived is None:
        return ()
    lane = "link.early" if isinstance(message, Early) else "link.outcome"
    return (Span(lane, message.sent, message.arrived, message.round),)


def moved(value: T, device: torch.device) -> T:
    """A message, or another value that holds tensors, with its tensors on a device."""
    leaves: list[Tensor] = []
    shape = flatten(value, leaves)
    result: T = rebuild(shape, iter([leaf.to(device, non_blocking=device.type == "cuda") for leaf in leaves]))
    return result
