"""A drafter on a device of its own, told what to do by the target's host thread, far ahead of both devices.

B rows, M = N + 1 places of a window, X columns of a report or hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from specdec.book import Book, either
from specdec.guard import Guarded
from specdec.hypotheses import Hypotheses, judged
from specdec.loop import directly, propose
from specdec.noise import Noise
from specdec.parts import Settled, follow, foresee, look, prepare, read, resume, settle
from specdec.protocols import Forecast
from specdec.runtime.huggingface import Network
from specdec.runtime.mail import Mail
from specdec.runtime.model import CachedModel, models_of
from specdec.runtime.streams import Side
from specdec.sequences import Sequences
from specdec.trace import Span, Trace
from specdec.turn import Turn
from specdec.types import Advice, Draft

READ = (look, propose)  # parts that may find rows which no model has read


class Duet:
    """Partner of the pipelined loop on devices: the host launches, and waits for one small answer a round.

    Args:
        drafter: proposes tokens. Without ``look`` and ``branch`` nothing is prepared, and it drafts when asked.
        guarded: the same, guarded.
        outlet: the target's norm and head on the drafter's device, see ``Network.outlet``.
        forecast: which outcomes to prepare for.
        weighs: whether the acceptance rule looks at the drafter's laws.
        side: the drafter's queue.
        trace: takes hits, spans and faults.
        reads: tokens of the forward that reads the rows, 0 where it is not to be recorded; see ``reading_width``.
    """

    def __init__(
        self,
        drafter: Any,
        guarded: Guarded,
        outlet: Network,
        forecast: Forecast,
        weighs: bool,
        side: Side,
        trace: Trace,
        reads: int = 0,
    ) -> None:
        self.hint = side.signal
        self._drafter, self._guarded, self._outlet, self._forecast = drafter, guarded, outlet, forecast
        self._weighs, self._side, self._trace, self._reads = weighs, side, trace, reads
        self._prepares = hasattr(drafter, "branch")

    def open(self, seq: Sequences, noise: Noise) -> None:
        """Begin with the rows on the drafter's device, which it has read."""
        self._seq, self._noise = seq, noise
        self._window = Draft.empty(seq.lengths)
        self._advice: Advice | None = None
        self._going = [True] * len(seq.lengths)  # rows that had not ended when branches were prepared
        self._answered = time.perf_counter()
        self._own: Tensor | None = None
        self._book: Book | None = None
        if not self._guarded.wants:  # else it is told first
            with self._side():
                self._look(0)

    def settle(self, turn: Turn) -> Draft:
        """Prepare, look up what has come true, and look at the next window; all without waiting.

        The target is at work while all this is launched. Then the host waits for one answer: whether a row needs a
        fresh draft. By then the drafter is busy with the next window, so that it does not wait for the host.
        """
        verified = self._side.mark()
        with self._side():
            if turn.early is not None or self._forecast.exit is None:
                self._prepare(turn.early)
            self._side.follow(verified)
            report_BX, self._advice = self._side.bring(turn.report), self._side.keep(turn.advice)
            with self._trace.span("drafter.settle", self._round):
                settled = self._play(settle, self._book, report_BX)
            mail, window = self._posted(settled), self._crossed(settled.window)
            self._alive = (turn, report_BX, self._advice, settled, self._book)  # until the devices have read them
            self._seq, self._window = self._play(follow, self._seq, report_BX), settled.window
            self._look(self._round + 1)
            facts, spans = self._awaited(mail)
            if any(wanted for _, wanted, _ in facts):
                self._fresh(settled)
                window = self._crossed(self._window)
                self._look(self._round + 1)
            if turn.early is not None:
                self._trace.passed("target.exit", self.hint.event, self._round)
            self._trace.handover([hit == 1 for hit, *_ in facts], self._branches(facts), spans)
        return window

    def _awaited(self, mail: Mail) -> tuple[list[list[int]], tuple[Span, ...]]:
        """The answer, and what the host did: it launched, then it waited."""
        asked, facts, before = time.perf_counter(), mail.tolist(), self._answered
        self._answered = now = time.perf_counter()
        launch = Span("host.launch", before, asked, self._round)
        return facts, (launch, Span("host.wait", asked, now, self._round))

    @property
    def _round(self) -> int:
        """The hand-over that is next."""
        return len(self._trace.handovers)

    def _branches(self, facts: list[list[int]]) -> int:
        """Outcomes that had been prepared; who goes on was told by the answer before."""
        branches = sum(count for (*_, count), going in zip(facts, self._going, strict=True) if going)
        self._going = [hit + wanted > 0 for hit, wanted, _ in facts]
        return branches

    def _look(self, round: int) -> None:
        """Read the window of a round."""
        self._standing = self._side.standing()
        self._own = self._book = None
        if self._prepares:
            with self._caring(), self._trace.span("drafter.look", round):
                self._own = self._play(look, self._seq, self._window, self._told(), self._guarded)

    def _told(self) -> Advice | None:
        """The last round's advice, for the first that asks."""
        advice, self._advice = self._advice, None
        return advice

    def _prepare(self, early_BMX: Tensor | None) -> None:
        if self._own is None:
            return
        with self._caring():
            outcomes = self._foreseen(early_BMX)
            with self._trace.span("drafter.branch", self._round):
                self._book = self._play(prepare, self._seq, self._window, outcomes, self._guarded, self._noise)

    def _foreseen(self, early_BMX: Tensor | None) -> Hypotheses:
        """Read the early exit out as soon as it is passed, beside what the drafter has to read; forecast."""
        told, early = (self._seq, judged(self._window, self._weighs)), None
        if early_BMX is not None:
            with self._side.reading(self._standing, self.hint.event):
                there_BMX = self._side.bring(early_BMX)
                early = self._play(read, self._forecast.exit, self._outlet, there_BMX, *told)
                if not self._forecast.reads_drafter:
                    return cast(Hypotheses, self._play(foresee, *told, None, early, self._forecast))
        return cast(Hypotheses, self._play(foresee, *told, self._own, early, self._forecast))

    def _fresh(self, settled: Settled) -> None:
        with self._trace.span("drafter.draft", self._round):
            if self._own is None or not hasattr(self._drafter, "resume"):
                fresh = self._play(propose, self._seq, self._told(), self._guarded, self._noise)
            else:
                fresh = self._play(resume, self._seq, self._window, self._own, self._guarded, self._noise)
            self._window = self._play(either, settled.hit, settled.window, fresh)

    def _posted(self, settled: Settled) -> Mail:
        with self._side.sending():
            return Mail(settled.facts)

    def _crossed(self, draft: Draft) -> Draft:
        """The window on the target's device, whose queue waits for it."""
        with self._side.sending():
            there = self._side.target
            if draft.tokens.device != there:
                laws = None if draft.laws is None else draft.laws.to(there, non_blocking=True)
                # In one piece: every copy between devices makes them wait for each other.
                whole_BX = torch.cat([draft.tokens, draft.parents, draft.base[:, None]], 1)
                tokens_BN, parents_BN, base_B1 = whole_BX.to(there, non_blocking=True).split(
                    [draft.size, draft.size, 1], 1
                )
                draft = Draft(tokens_BN, parents_BN, base_B1[:, 0], laws, draft.fanout)
            self._side.lead()
        return draft

    def _play(self, part: Any, *arguments: Any) -> Any:
        models, reads = models_of(self._drafter), self._reads
        if part in READ:
            self._reads = 0  # after a fault the rows are longer
        moves = part in (propose, either) and not self._guarded.static
        # What runs on a CPU leaves nothing in a GPU's recording.
        if not models or moves or not self._side.alike:
            return directly(part, *arguments)
        reading = [model for model in models if not model.follows]
        if part not in READ or not reading:
            return self._replayed(models, part, *arguments)
        if not reads or not all(model.steady for model in reading):
            return directly(part, *arguments)  # its shapes depend on the rows
        seq, *others = arguments
        arguments = (replace(seq, reads=reads), *others)
        known, leaves = self._side.replay.find(part, tuple(model.place for model in models), arguments)
        if known is None or known.recording is None:
            return directly(part, *arguments)
        result = known.recording(leaves)
        for model in reading:  # played directly they know what they have read, or failed to
            model.caught_up()
        return result

    def _replayed(self, models: tuple[CachedModel, ...], part: Any, *arguments: Any) -> Any:
        return self._side.replay(part, tuple(model.place for model in models), *arguments)

    @contextmanager
    def _caring(self) -> Iterator[None]:
        """What fails here costs the prepared drafts of a round."""
        try:
            yield
        except Exception as error:  # whatever a drafter raises, the next outcome is answered
            self._guarded.failed(error)
