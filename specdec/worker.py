"""The drafter's side of a pipeline: it follows the rows, prepares for outcomes, answers when one has come true.

B rows, M = N + 1 places of a window, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from specdec.book import Book, counted, either
from specdec.desk import Desk
from specdec.guard import Guarded
from specdec.hypotheses import Candidates, judged
from specdec.messages import Early, Message, Opening, Outcome, Ready, Window, journey
from specdec.protocols import Drafter, Forecast, Verifier
from specdec.rows import followed, lacking, rows_of
from specdec.runtime import CachedModel
from specdec.trace import Clock, Span, Trace
from specdec.types import Advice, Draft


@dataclass(frozen=True)
class Absent:
    """What a drafter may know of a target that works elsewhere.

    Attributes:
        vocab_size: V; where it is not known, an opening tells.
        device: where drafts are made.
        tokenizer: the target's, None where it is unknown.
        model: the target's network with a cache of its own, for drafters that run its layers; None where it is
            out of reach.
    """

    vocab_size: int
    device: torch.device
    tokenizer: Any = None
    model: CachedModel | None = None


class DraftWorker:
    """Answers messages. Nothing it does, fails to do or does twice can change a token.

    Args:
        drafter: proposes tokens. Without ``look`` and ``branch`` nothing is prepared, and it drafts when asked.
        forecast: which outcomes to prepare for.
        target: what is known of the target; None asks nothing but the width of its vocabulary.
        device: where the rows are kept.
        clock: seconds, for its spans.
    """

    def __init__(
        self,
        drafter: Drafter,
        forecast: Forecast,
        device: torch.device,
        target: Absent | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._forecast, self._target, self._device, self._clock = forecast, target, device, clock
        self._trace = Trace()
        self._drafter, self._guarded = drafter, Guarded(drafter, self._trace)
        self._desk: Desk | None = None

    @property
    def device(self) -> torch.device:
        """Where the rows are kept."""
        return self._device

    def serve(self, messages: list[Message], answer: Callable[[Message], None]) -> None:
        """Take messages that have come in, and then work ahead. What a later message overtakes is left out."""
        for message in messages:
            self.hear(message)
        for message in overtaken(messages):
            reply = self.handle(message)
            if reply is not None:
                answer(reply)
        self.ahead()

    def hear(self, message: Message) -> None:
        """Note a message's journey, if the connection looked, and its advice.

        Whether it is taken or overtaken does not matter: what a round said of the target goes to the drafter with
        the next outcome that is taken. States are missing only where an outcome never came.
        """
        desk = self._desk
        if desk is None or not isinstance(message, Early | Outcome) or message.generation != desk.generation:
            return
        desk.spans += journey(message)
        if isinstance(message, Outcome) and message.round >= desk.round:
            desk.advice = Advice.joined((desk.advice, message.advice))

    def handle(self, message: Message) -> Ready | Window | None:
        """Take a message; what there is to answer."""
        if isinstance(message, Opening):
            return self.open(message)
        if isinstance(message, Early):
            self.early(message)
        return self.settle(message) if isinstance(message, Outcome) else None

    @torch.inference_mode()
    def open(self, opening: Opening) -> Ready:
        """Read the rows. A drafter that does not fit says why; one that has come further already goes on."""
        desk = self._desk
        if desk is not None and desk.generation == opening.generation and opening.round < desk.round:
            return Ready(opening.generation, wants=self._guarded.wants)
        seq = rows_of(opening, self._device)
        target = replace(self._target or Absent(0, self._device), vocab_size=opening.vocab_size)
        refusal = self._guarded.refusal(cast(Verifier, target), seq)
        if refusal:
            return Ready(opening.generation, refusal)
        self._desk = Desk.of(opening, seq)
        return Ready(opening.generation, wants=self._guarded.wants)

    @torch.inference_mode()
    def ahead(self) -> None:
        """Work that needs no message: read the window, and prepare where the drafter itself is asked."""
        desk = self._desk
        if desk is None or desk.own is not None or not hasattr(self._drafter, "branch"):
            return
        if desk.round == 0 and self._guarded.wants:  # it is told first
            return
        with self._caring(desk, "look"):
            desk.own = self._guarded.look(desk.context(), desk.window)
        if self._forecast.exit is None:
            self._prepare(desk, None)

    @torch.inference_mode()
    def early(self, message: Early) -> None:
        """Prepare for what the target's early exit makes likely."""
        desk = self._desk
        if desk is None or (message.generation, message.round) != (desk.generation, desk.round):
            return
        if message.size == 0 < desk.window.size:  # the window was lost, and the target goes on without
            desk.window, desk.own = Draft.empty(desk.seq.lengths), None
            self.ahead()
        if message.size == desk.window.size:
            self._prepare(desk, message.candidates)

    @torch.inference_mode()
    def settle(self, outcome: Outcome) -> Window | None:
        """Turn to what has come true: the prepared draft, or a fresh one. None for what is settled already.

        Where tokens are lacking, because an opening or an outcome never came, the rows stay as they are.
        """
        desk = self._desk
        if desk is None or outcome.generation != desk.generation:
            return lost(outcome)
        if outcome.round <= desk.settled:
            return None
        if lacking(desk.seq, outcome):
            return lost(outcome)
        desk.round = outcome.round
        with self._spanning(desk, "settle"):
            prepared, hit_B = self._look_up(desk, outcome)
            branches = counted(desk.book, desk.seq.ended)  # a row that ends now had some
            desk.seq = followed(desk.seq, outcome)
            hit_B = hit_B & ~outcome.ended
        fresh = Draft.empty(desk.seq.lengths)
        if not bool((hit_B | outcome.ended).all()):
            with self._spanning(desk, "draft"):
                fresh = self._guarded.draft(desk.context(), desk.noise)
        desk.window = either(hit_B, prepared, fresh)
        return self._answer(desk, hit_B, branches)

    def _look_up(self, desk: Desk, outcome: Outcome) -> tuple[Draft, Tensor]:
        if desk.book is None:
            return Draft.empty(outcome.lengths), torch.zeros_like(outcome.ended)
        last_B = (outcome.lengths - outcome.since - 1).clamp(min=0)
        token_B = outcome.tokens.gather(1, last_B[:, None])[:, 0]
        return desk.book.look_up(outcome.before, outcome.nodes, token_B)

    def _prepare(self, desk: Desk, early: Candidates | None) -> None:
        if desk.own is None or desk.book is not None:
            return
        context = desk.seq.context()
        with self._caring(desk, "branch"):
            outcomes = self._forecast(judged(desk.window, desk.weighs), desk.seq.sampling.soft(desk.own), early)
            drafts = self._guarded.branch(context, desk.window, outcomes, desk.noise)
            desk.book = Book.of(desk.seq.lengths, outcomes, drafts)

    def _answer(self, desk: Desk, hit_B: Tensor, branches: int) -> Window:
        """The window; the desk is clear for the next round."""
        faults = tuple(self._trace.faults.elements())
        self._trace.faults.clear()
        window = Window(desk.generation, desk.round, desk.window, hit_B, branches, tuple(desk.spans), faults)
        desk.settled, desk.round, desk.own, desk.book, desk.spans = desk.round, desk.round + 1, None, None, []
        return window

    @contextmanager
    def _spanning(self, desk: Desk, what: str) -> Iterator[None]:
        start = self._clock()
        try:
            yield
        finally:
            desk.spans.append(Span(f"drafter.{what}", start, self._clock(), desk.round))

    @contextmanager
    def _caring(self, desk: Desk, what: str) -> Iterator[None]:
        """What fails here costs the prepared drafts of a round."""
        try:
            with self._spanning(desk, what):
                yield
        except Exception as error:  # whatever a drafter raises, the next outcome is answered
            self._guarded.failed(error)


def lost(outcome: Outcome) -> Window:
    """The answer to an outcome of rows that are not all there."""
    none_B = torch.zeros_like(outcome.ended)
    return Window(outcome.generation, outcome.round, Draft.empty(outcome.lengths), none_B, lacking=True)


def overtaken(messages: list[Message]) -> list[Message]:
    """The messages without those that a later outcome or opening makes pointless."""
    ends = [index for index, message in enumerate(messages) if isinstance(message, Outcome | Opening)]
    last = ends[-1] if ends else 0
    opening = max((index for index in ends if isinstance(messages[index], Opening)), default=last)
    return [message for index, message in enumerate(messages) if index >= last or index == opening]
