"""What the loop asks of its parts. Any object with these methods will do; nothing is to be subclassed.

B rows, N draft nodes, M = N + 1, V target vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from specdec.noise import Noise
from specdec.runtime import CachedModel
from specdec.runtime.replay import Replay
from specdec.sequences import Sequences
from specdec.types import Advice, Context, Draft, Tap, Verdict


class Evidence(Protocol):
    """What the target found out about a draft."""

    def laws(self) -> Tensor:
        """float [B, M, V]: the target's law after the last committed token, then after each node."""
        ...

    def along(self, verdict: Verdict) -> Advice | None:
        """Tapped states of the tokens that the verdict commits, None if no tap was asked for."""
        ...


class Verifier(Protocol):
    """Runs the target. Prefill is its first call, with an empty draft."""

    @property
    def model(self) -> CachedModel:
        """The target, for drafters that share its layers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the target takes token ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, width of the target's logits."""
        ...

    @property
    def replay(self) -> Replay | None:
        """What plays recorded rounds, None where the host launches every operation."""
        ...

    @property
    def width(self) -> int | None:
        """Tokens of every replayed forward after prefill; None takes as many as a draft has."""
        ...

    def begin(self, seq: Sequences, wants: tuple[Tap, ...] = ()) -> None:
        """A new generation starts. Raises ValueError where the target cannot hold these rows."""
        ...

    def score(self, seq: Sequences, draft: Draft) -> Evidence:
        """Run the target over what it has not seen of the rows, and over the draft."""
        ...

    def commit(self, seq: Sequences, draft: Draft, verdict: Verdict) -> Sequences:
        """Keep the accepted path in the target's cache, and append it to the rows."""
        ...


class Drafter(Protocol):
    """Proposes tokens. Whatever it does, the output follows the target's law."""

    @property
    def wants(self) -> tuple[Tap, ...]:
        """Taps it would like from the target's forward."""
        ...

    @property
    def static(self) -> bool:
        """Whether ``draft`` is a tensor function whose shapes do not depend on the rows, and can be replayed."""
        ...

    @property
    def size(self) -> int:
        """The most nodes of a row's draft."""
        ...

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """A new generation starts: forget the last one. Raises ValueError where target and drafter do not fit."""
        ...

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A token tree for every row; rows that are finished or have no proposal get padding."""
        ...


class AcceptanceRule(Protocol):
    """A pure tensor function with static shapes."""

    @property
    def lossless(self) -> bool:
        """Whether the output follows the target's law."""
        ...

    @property
    def coupled(self) -> bool:
        """Whether drafters share the target's noise."""
        ...

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """Decide which nodes are accepted, and the token that follows them."""
        ...
