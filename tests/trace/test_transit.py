"""Times of the other side on this side's clock, against journeys that are known."""

from __future__ import annotations

import pytest
import torch

from specdec import Draft
from specdec.messages import Window
from specdec.trace import Span
from specdec.transit import aligned, crossings

ONE = torch.tensor([3])


def window(offset, out=0.004, back=0.002):
    """An outcome leaves at 10, is settled for 0.1 by a clock that is ``offset`` ahead, and is answered."""
    there, done = 10 + out, 10 + out + 0.1
    spans = (
        Span("drafter.look", 9 + offset, 9.5 + offset, 7),
        Span("link.early", 9.6, 9.6 + out + offset, 7),
        Span("link.outcome", 10, there + offset, 7),
        Span("drafter.settle", there + offset, done + offset, 7),
    )
    return Window(0, 7, Draft.empty(ONE), ONE == 3, 4, spans, sent=done + offset, arrived=done + back)


@pytest.mark.parametrize("offset", [0.0, 0.0015, -0.003])
def test_one_clock_and_what_cannot_be_told_from_it_stay_as_they_are(offset):
    message = window(offset)
    assert aligned(message)[:-1] == message.spans
    assert aligned(message)[-1] == Span("link.draft", message.sent, message.arrived, 7)


@pytest.mark.parametrize("offset", [5000.0, -86400.0, 0.1])
@pytest.mark.parametrize(("out", "back"), [(0.004, 0.002), (0.001, 0.03), (0.0, 0.0)])
def test_another_clock_is_off_by_half_of_the_journeys_at_most(offset, out, back):
    found, right = aligned(window(offset, out, back)), aligned(window(0.0, out, back))
    bound = (out + back) / 2 + 1e-9
    assert [span.lane for span in found] == [span.lane for span in right]
    for one, other in zip(found, right, strict=True):
        assert abs(one.start - other.start) <= bound and abs(one.end - other.end) <= bound
    # What left here is on this side's clock already.
    assert [span.start for span in found if span.lane in ("link.early", "link.outcome")] == [9.6, 10]
    assert all(span.seconds >= -1e-9 for span in found if span.lane in ("link.outcome", "link.draft"))


def test_without_times_there_are_no_journeys():
    spans = (Span("drafter.look", 1, 2, 7),)
    assert aligned(Window(0, 7, Draft.empty(ONE), ONE == 3, 4, spans)) == spans


def test_what_crosses_between_devices():
    spans = [
        Span("target", 0, 10),
        Span("target.exit", 3, 3, 0),
        Span("drafter.branch", 4, 9, 0),
        Span("drafter.settle", 11, 12, 0),
        Span("drafter.draft", 12, 15, 0),
        Span("target", 16, 26),
        Span("target.exit", 19, 19, 1),
        Span("drafter.settle", 25.9, 28, 1),  # two clocks, some microseconds off
        Span("target", 29, 39),
    ]
    assert crossings(spans) == [
        Span("link.early", 3, 4, 0),
        Span("link.outcome", 10, 11, 0),
        Span("link.draft", 15, 16, 0),
        Span("link.outcome", 26, 26, 1),
        Span("link.draft", 28, 29, 1),
    ]
