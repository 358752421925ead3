"""What the loop asks of its parts. Any object with these methods will do; nothing is to be subclassed.

B rows, N draft nodes, M = N + 1, V target vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from specdec.exit import Exit, Hint
from specdec.hypotheses import Candidates, Hypotheses
from specdec.noise import Noise
from specdec.runtime import CachedModel
from specdec.runtime.replay import Replay
from specdec.sequences import Sequences
from specdec.turn import Turn
from specdec.types import Advice, Context, Draft, Verdict, Want

if TYPE_CHECKING:
    from specdec.partner import Link
    from specdec.planner import Costs
    from specdec.trace import Clock


class Evidence(Protocol):
    """What the target found out about a draft."""

    def laws(self) -> Tensor:
        """float [B, M, V]: the target's law after the last committed token, then after each node."""
        ...

    def choices(self) -> Tensor:
        """int64 [B, M]: the likeliest token there, which greedy decoding takes."""
        ...

    @property
    def early(self) -> Tensor | None:
        """[B, M, hidden]: the states of the window behind the early exit, None without one."""
        ...

    def along(self, verdict: Verdict) -> Advice | None:
        """What was wanted: tapped states of the tokens that the verdict commits, likeliest tokens of the window.

        None if nothing was.
        """
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

    def begin(self, seq: Sequences, wants: tuple[Want, ...] = (), exit: Exit | None = None) -> None:
        """A new generation starts.

        Raises:
            ValueError: the target cannot hold these rows, or has no such exit, or fewer tokens than are wanted.
        """
        ...

    def score(self, seq: Sequences, draft: Draft, hint: Hint | None = None) -> Evidence:
        """Run the target over what it has not seen of the rows, and over the draft.

        ``hint`` is called from inside the forward with what there is to see at the early exit, if there is one.
        """
        ...

    def commit(self, seq: Sequences, draft: Draft, verdict: Verdict) -> Sequences:
        """Keep the accepted path in the target's cache, and append it to the rows."""
        ...


class Drafter(Protocol):
    """Proposes tokens. Whatever it does, the output follows the target's law.

    One that runs the target's layers, or uses its embedding, norm or head, says so by an attribute ``borrows``
    that is true: elsewhere ``target.model`` is None for all others, since weights are not sent for nothing.
    One that has a ``CachedModel`` shows it as ``model``, or several as ``models``: what is recorded is good while
    their caches lie where they lay, after a failure they are forgotten, and no module runs at two sides at once.
    One that works on a device of its choice names it as ``device``; None or nothing is the target's.
    """

    @property
    def wants(self) -> tuple[Want, ...]:
        """What it would like to see of the target's forward."""
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
        """A token tree for every row; rows that are finished or have no proposal get padding.

        Every advice is in one context only, that of the first call behind its round: this one or ``look``. It may
        be missing, be that of several rounds, or have holes.
        """
        ...


class BranchingDrafter(Drafter, Protocol):
    """A drafter that can prepare for many outcomes at once."""

    def look(self, context: Context, window: Draft) -> Tensor:
        """[B, M, V]: its own logits after the last committed token and after each node.

        Who wants nothing looks at the first window before the target has read the prompt; who wants something is
        asked once it was told some.
        """
        ...

    def resume(self, context: Context, window: Draft, own_BMV: Tensor, noise: Noise) -> Draft:
        """What ``draft`` would give, from what it found when it looked at a window last, without reading anew."""
        ...

    def branch(self, context: Context, window: Draft, outcomes: Hypotheses, noise: Noise) -> Draft:
        """What ``draft`` would give after each outcome of the window it looked at last, rows b * X + x.

        Draws must be those of ``draft``: the same noise, keyed by the length that the outcome would have.
        """
        ...


class Forecast(Protocol):
    """Says which outcomes of a window deserve a prepared draft. B rows, X outcomes per row."""

    @property
    def exit(self) -> Exit | None:
        """The early exit of the target that it reads, None where it reads the drafter alone."""
        ...

    @property
    def reads_drafter(self) -> bool:
        """Whether it reads the drafter's own law."""
        ...

    def __call__(self, window: Draft, own_BMV: Tensor | None, early: Candidates | None) -> Hypotheses:
        """Outcomes, from the drafter's own log-probabilities [B, M, V] and the exit's message."""
        ...


class DraftPartner(Protocol):
    """What the pipelined loop knows of a drafter that works while the target does."""

    @property
    def hint(self) -> Hint:
        """Sees the early exit from inside the target's forward."""
        ...

    def settle(self, turn: Turn) -> Draft:
        """Hear what has come true, and give the next draft; an empty one where there is none."""
        ...


class Channel(Protocol):
    """How the two sides of a pipeline talk."""

    @property
    def patience(self) -> float:
        """Seconds to wait for a draft before a round goes without."""
        ...

    @property
    def costs(self) -> Costs | None:
        """What the parts of a round cost, on a virtual clock; None takes the time as it passes."""
        ...

    def link(
        self, drafter: Drafter, forecast: Forecast, verifier: Verifier, clock: Clock
    ) -> AbstractContextManager[Link]:
        """A connection for one generation, whose trace goes by ``clock``."""
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

    @property
    def weighs(self) -> bool:
        """Whether a token's chance is weighed against the law it was drafted by, as min(1, p/q)."""
        ...

    def __call__(self, draft: Draft, law_BMV: Tensor, noise: Noise) -> Verdict:
        """Decide which nodes are accepted, and the token that follows them."""
        ...
