"""Messages on their way, and what the other side did, on the clock of the target's side.

Processes of one machine read one clock (``time.perf_counter`` counts from when the machine started); the clocks of
two machines have nothing in common. Every answered outcome tells how far they can be apart, since no message
arrives before it was sent. Devices have one scale by ``DeviceClock``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specdec.messages import Window
from specdec.trace import Span


def aligned(window: Window) -> tuple[Span, ...]:
    """The drafter's spans on this side's clock, with the journey of its answer."""
    ahead = shift(window)
    spans = [replace(span, start=span.start + ahead, end=span.end + ahead) for span in window.spans]
    for index, span in enumerate(window.spans):
        if span.lane.startswith("link."):  # it left here
            spans[index] = replace(spans[index], start=span.start)
    if window.sent is not None and window.arrived is not None:
        spans.append(Span("link.draft", window.sent + ahead, window.arrived, window.round))
    return tuple(spans)


def shift(window: Window) -> float:
    """Seconds to add to the drafter's times: none where all messages arrive after they were sent without.

    Else clocks differ, and the middle of what is possible is taken. It is wrong by half the two messages' time on
    the way at most (as in NTP, RFC 5905).
    """
    asked = [span for span in window.spans if (span.lane, span.round) == ("link.outcome", window.round)]
    if not asked or window.sent is None or window.arrived is None:
        return 0.0
    least, most = asked[0].start - asked[0].end, window.arrived - window.sent
    return 0.0 if least <= 0 <= most else (least + most) / 2


def crossings(spans: Sequence[Span]) -> list[Span]:
    """What crosses over between two devices, from marks on either side: nobody is told when a copy is there.

    The early exit's message arrives when the drafter can go on with it, and so do the others: waiting for a busy
    queue is in it.
    """
    targets = sorted((span for span in spans if span.lane == "target"), key=lambda span: span.start)
    at = {(span.lane, span.round): span for span in spans if span.round is not None}
    found = []
    for round, target in enumerate(targets):
        exit, branch = at.get(("target.exit", round)), at.get(("drafter.branch", round))
        settle = at.get(("drafter.settle", round))
        if exit is not None and branch is not None:
            found.append(way("link.early", exit.end, branch.start, round))
        if settle is not None and round + 1 < len(targets):
            made = at.get(("drafter.draft", round), settle)
            found.append(way("link.outcome", target.end, settle.start, round))
            found.append(way("link.draft", made.end, targets[round + 1].start, round))
    return found


def way(lane: str, sent: float, arrived: float, round: int) -> Span:
    """A journey; two devices' marks may be some microseconds off."""
    return Span(lane, sent, max(sent, arrived), round)
