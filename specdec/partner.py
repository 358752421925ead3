"""The target's side of a pipeline: what the loop knows of a drafter that works on its own.

B rows, J tokens that the drafter does not have yet.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.exit import Glimpse
from specdec.guard import check_shapes
from specdec.messages import Early, Message, Opening, Outcome, Ready, Window, moved
from specdec.protocols import Evidence
from specdec.report import NODE
from specdec.sequences import Sequences
from specdec.trace import Trace
from specdec.transit import aligned
from specdec.turn import Turn
from specdec.types import Draft, Verdict, Want

OPENING = 60.0  # seconds for a drafter to read a prompt: a hung one must not hold up the target for good


class Link(Protocol):
    """A connection to a drafter's side."""

    def send(self, message: Message) -> None:
        """Let a message go. Raises ConnectionError where the other side is gone."""
        ...

    def receive(self, timeout: float | None) -> Message | None:
        """The next message, None if none comes within so many seconds; None waits without end.

        Raises:
            ConnectionError: the other side is gone.
        """
        ...

    def revive(self) -> bool:
        """Try to connect again, without waiting; whether that worked."""
        ...


def check_seconds(name: str, seconds: float) -> float:
    """A time to wait. Raises ValueError unless it is above 0, and so short that one can wait for it."""
    if not 0 < seconds <= threading.TIMEOUT_MAX:  # neither is NaN
        raise ValueError(f"{name} must be above 0 seconds and not without end, not {seconds}")
    return seconds


class Partner:
    """Talks to a drafter's side for the loop. Whatever goes wrong there costs rounds without a draft.

    Args:
        link: to the other side.
        trace: takes hits, spans and faults.
        patience: seconds to wait for a draft before a round goes without.

    Raises:
        ValueError: no such patience, see ``check_seconds``.
    """

    def __init__(self, link: Link, trace: Trace, patience: float = 1.0) -> None:
        self._link, self._trace, self._patience = link, trace, check_seconds("patience", patience)
        self._gone = False
        self._wants: tuple[Want, ...] = ()
        self._named: Tensor | None = None  # tokens [B, M, K] of this round's early exit
        self._weighed: tuple[Tensor, Tensor] | None = None  # mass on them along the path, and its length
        self._refused = False  # to read the rows anew: to ask again would be of no use
        # Whether it answered last time. Who is behind is not waited for, else every round would take so long.
        self._in_step = True
        self._owed: set[int] = set()  # rounds that went without their window
        self._lacking = False  # whether it said that tokens of the rows never came

    @property
    def wants(self) -> tuple[Want, ...]:
        """What the drafter would like from the target's forward; nothing until it has read the prompt."""
        return self._wants

    def open(self, opening: Opening, device: torch.device) -> None:
        """Begin a generation. Raises ValueError if the drafter does not fit the target."""
        self._opening, self._device, self._round = opening, device, opening.round
        self._before = self._known = opening.lengths
        try:
            self._link.send(opening)
            ready = self._receive(Ready, max(OPENING, self._patience))
        except ConnectionError as error:
            self._lost(error)
            return
        if ready is None:  # it is not waited for until it has caught up
            self._trace.fault("has not read the prompt in time")
        if isinstance(ready, Ready):
            if ready.refusal:
                raise ValueError(ready.refusal)
            self._wants = ready.wants

    def hint(self, glimpse: Glimpse) -> None:
        """Send what the target's early exit says, while its last layers still run."""
        candidates = glimpse.read()
        self._trace.instant("target.exit", self._round)
        # In one thread the drafter's work is in here, else the message's way as far as the target waits for it.
        with self._trace.span("target.hint", self._round):
            self._send(Early(self._opening.generation, self._round, candidates))
        self._named = candidates.tokens

    def weigh(self, evidence: Evidence, verdict: Verdict) -> None:
        """Note the law's mass on the tokens that the early exit has named, along the accepted path."""
        if self._named is not None:
            mass_BM = evidence.laws().gather(-1, self._named).sum(-1)
            self._weighed = mass_BM.gather(1, pad(verdict.path + 1, (1, 0))), verdict.accepted

    def settle(self, turn: Turn) -> Draft:
        """Tell what has come true, and get the next draft; an empty one where there is none in time."""
        seq = turn.seq
        if self._gone:
            self._take_back(seq)
        else:
            with self._trace.span("host.send", self._round):
                self._send(self._outcome(turn))
        with self._trace.span("host.wait", self._round):
            window = None if self._gone else self._window()
        if window is None:
            self._owed.add(self._round)
        if self._lacking and not (self._gone or self._refused):
            self._trace.fault("lacks tokens of the rows, and is told them anew")
            self._open_again(seq)
        self._round, self._before = self._round + 1, seq.lengths
        omega = self._omega()
        if window is None:
            self._trace.handover([False] * len(seq.lengths), omega=omega)
            return Draft.empty(seq.lengths)
        self._known = seq.lengths
        self._trace.faults.update(window.faults)
        self._trace.handover(window.hit.tolist(), window.branches, aligned(window), omega)
        return window.draft

    def _omega(self) -> tuple[tuple[float, ...], ...]:
        """See ``Handover``; read when the host knows the round anyway, so that it waits for the device once."""
        weighed, self._weighed, self._named = self._weighed, None, None
        if weighed is None:
            return ()
        rows = zip(weighed[0].tolist(), weighed[1].tolist(), strict=True)
        return tuple(tuple(masses[: accepted + 1]) for masses, accepted in rows)

    def _outcome(self, turn: Turn) -> Outcome:
        seq = turn.seq
        return Outcome(
            generation=self._opening.generation,
            round=self._round,
            since=self._known,
            tokens=behind(seq, self._known),
            before=self._before,
            lengths=seq.lengths,
            nodes=turn.report[:, NODE],
            ended=seq.ended,
            advice=turn.advice,
        )

    def _window(self) -> Window | None:
        try:
            window = self._receive(Window, self._patience if self._in_step else 0.0)
        except ConnectionError as error:
            self._lost(error)
            return None
        if not isinstance(window, Window):
            self._trace.fault("no draft in time")
            return None
        try:
            check_window(window, self._before, self._opening.vocab_size)
        except ValueError as error:  # whatever the other side is made of, decoding goes on
            self._trace.fault(f"gave a window that is none: {error}")
            return None
        return window

    def _receive(self, kind: type, patience: float | None) -> Message | None:
        """The next message of a kind that is for now; None after ``patience`` seconds."""
        deadline = None if patience is None else time.perf_counter() + patience
        self._in_step = patience is None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.perf_counter())
            message = self._link.receive(left)
            if message is None:
                return None
            if self._is_for_now(message, kind):
                self._in_step = True
                return moved(message, self._device)

    def _is_for_now(self, message: Message, kind: type) -> bool:
        if not isinstance(message, Ready | Window) or message.generation != self._opening.generation:
            return False
        if isinstance(message, Ready):
            self._in_step |= not message.refusal
            if message.refusal and kind is not Ready:
                self._refused = True
                self._trace.fault(f"does not read the rows anew: {message.refusal}")
            return kind is Ready
        # Who answers the round before has caught up, and is waited for again.
        self._in_step |= message.round >= self._round - 1
        # What it lacked before it was told all rows anew, it has.
        self._lacking |= message.lacking and message.round >= self._opening.round
        if message.round in self._owed:  # too late to be verified, but what it tells has happened
            self._owed.remove(message.round)
            self._trace.faults.update(message.faults)
            self._trace.late(message.round, message.branches, aligned(message))
        return kind is Window and message.round == self._round

    def _send(self, message: Message) -> None:
        if not self._gone:
            try:
                self._link.send(message)
            except ConnectionError as error:
                self._lost(error)

    def _lost(self, error: ConnectionError) -> None:
        self._gone = True
        self._trace.fault(f"is gone: {error}")

    def _take_back(self, seq: Sequences) -> None:
        """A drafter that has come back reads the rows anew; it is waited for when it has answered once."""
        if self._link.revive():
            self._gone = self._refused = False
            self._open_again(seq)

    def _open_again(self, seq: Sequences) -> None:
        """Tell the rows anew. Who reads them is not waited for until it has answered."""
        self._opening = replace(self._opening, round=self._round + 1, tokens=seq.tokens, lengths=seq.lengths)
        self._in_step, self._lacking, self._known = False, False, seq.lengths
        self._send(self._opening)


def check_window(window: Window, lengths_B: Tensor, vocabulary: int) -> None:
    """Raises ValueError unless a window fits the rows, of whatever lengths."""
    check_shapes(window.draft, len(lengths_B), lengths_B.device, vocabulary)
    if window.hit.shape != lengths_B.shape or window.hit.dtype != torch.bool:
        raise ValueError(f"hit must be bool {tuple(lengths_B.shape)}, not {window.hit.dtype} {window.hit.shape}")


def behind(seq: Sequences, known_B: Tensor) -> Tensor:
    """int64 [B, J]: the committed tokens of each row behind the first ``known_B``, then padding (anything)."""
    index_J = torch.arange(int((seq.lengths - known_B).max()), device=known_B.device)
    return seq.tokens.gather(1, (known_B[:, None] + index_J).clamp(max=seq.tokens.shape[1] - 1))
