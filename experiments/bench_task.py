"""What other libraries are given to decode with, and what of their time counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from experiments.bench_arms import Window

TOO_FEW = "too few rounds to time: raise peer_tokens"


@dataclass(frozen=True, eq=False)
class Task:
    """What every library is given.

    Attributes:
        target, assistant: Hugging Face modules; ours run on the same weights.
        new_tokens: per generation, end tokens or not.
        length: tokens that the assistant drafts per round.
    """

    target: Any
    assistant: Any
    new_tokens: int
    length: int
    _made: dict[Any, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where all run."""
        return self.target.device

    def once(self, make: Callable[[Task], Any]) -> Any:
        """What ``make`` makes of the task, for all ways of a library: some of it takes minutes to compile."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]


def between(times: Sequence[float], reads: Sequence[int], skip: int) -> Window:
    """The reads that read no prompt and that the end does not cut.

    Args:
        times: when each token was read, in seconds.
        reads: how many tokens each read brought.
        skip: reads until both models have read the prompt.

    Raises:
        ValueError: there are none.
    """
    ends = list(accumulate(reads))
    if len(ends) <= skip + 1:
        raise ValueError(TOO_FEW)
    first, last = ends[skip - 1], ends[-2]
    return Window(times[last - 1] - times[first - 1], last - first, len(ends) - skip - 1)
