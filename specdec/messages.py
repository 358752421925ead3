"""What the two sides of a pipeline say to each other.

B rows, S token slots, N draft nodes, M = N + 1, K candidates per place, J tokens since the last message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from specdec.hypotheses import Candidates
from specdec.runtime.replay import flatten, rebuild
from specdec.sampling import Sampling
from specdec.types import Draft

VERSION = 1  # of all messages together: sides of different versions do not talk


@dataclass(frozen=True)
class Opening:
    """To the drafter: a generation starts, or goes on after the drafter was away.

    Attributes:
        generation: which; messages of another are not for it.
        round: the first one that will be asked for.
        tokens: int64 [B, S], the rows.
        lengths, prompts, limits: int64 [B], as in ``Sequences``.
        sampling: the law the target decodes under.
        seed, coupled: of the noise.
        vocab_size: V of the target.
        vocabulary: digest of its tokens, empty where it is unknown.
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
    vocab_size: int
    vocabulary: str = ""


@dataclass(frozen=True)
class Ready:
    """From the drafter: it has read the rows; or why it cannot draft for this target."""

    generation: int
    refusal: str = ""


@dataclass(frozen=True)
class Early:
    """To the drafter, from inside the target's forward: what the early exit says of the window."""

    generation: int
    round: int
    candidates: Candidates


@dataclass(frozen=True)
class Outcome:
    """To the drafter: what became of a window.

    Attributes:
        generation, round: which.
        since: int64 [B], how many tokens of each row the drafter is known to have.
        tokens: int64 [B, J], those behind them.
        before: int64 [B], committed length before the round.
        lengths: int64 [B], and after it.
        nodes: int64 [B], last accepted node of the drafter's window, ``tree.ROOT`` where none was.
        ended: bool [B].
    """

    generation: int
    round: int
    since: Tensor
    tokens: Tensor
    before: Tensor
    lengths: Tensor
    nodes: Tensor
    ended: Tensor


@dataclass(frozen=True)
class Window:
    """From the drafter: the next draft.

    Attributes:
        generation, round: of the outcome that it answers.
        draft: the window.
        hit: bool [B], whether it had been prepared.
        branches: outcomes that were prepared, all rows together.
        spans: (lane, start, end) of what was done for it, on the drafter's clock.
        faults: what went wrong.
    """

    generation: int
    round: int
    draft: Draft
    hit: Tensor
    branches: int = 0
    spans: tuple[tuple[str, float, float], ...] = ()
    faults: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Closing:
    """To the drafter: it is not needed any more."""


T = TypeVar("T")
Message = Opening | Ready | Early | Outcome | Window | Closing


def moved(value: T, device: torch.device) -> T:
    """A message, or another value that holds tensors, with its tensors on a device."""
    leaves: list[Tensor] = []
    shape = flatten(value, leaves)
    result: T = rebuild(shape, iter([leaf.to(device, non_blocking=True) for leaf in leaves]))
    return result
