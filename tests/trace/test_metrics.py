"""Metrics against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch

from specdec import Draft, Metrics, Trace, Verdict
from specdec.report import FAULTS, report
from specdec.sequences import Sequences
from specdec.trace import Round, Span

NO_FAULTS = torch.zeros(1, len(FAULTS), dtype=torch.bool)


def trace_of(*rounds):
    trace = Trace(rounds=[Round(*entry) for entry in rounds])
    trace.end = 10.0
    return trace


def test_definitions_of_accepted_tokens_side_by_side():
    # row, drafted, nodes, accepted, committed; the first round of each row is its prefill
    metrics = Metrics.of(
        trace_of((0, 0, 0, 0, 1), (1, 0, 0, 0, 1), (0, 3, 3, 3, 4), (1, 3, 3, 0, 1), (0, 3, 3, 1, 2))
    )
    assert metrics.new_tokens == 9
    assert (metrics.rounds, metrics.decoding_rounds) == (5, 3)
    assert metrics.mean_accepted_tokens == pytest.approx(7 / 3)
    assert metrics.mean_accepted_drafts == pytest.approx(4 / 3)
    assert metrics.mean_accepted_tokens_by_row == pytest.approx((3 + 1) / 2)
    assert metrics.drafted_tokens == 9
    assert metrics.tokens_per_second == pytest.approx(0.9)


def test_acceptance_by_position():
    metrics = Metrics.of(trace_of((0, 0, 0, 0, 1), (0, 3, 3, 3, 4), (0, 2, 2, 0, 1), (0, 2, 2, 1, 2)))
    table = [(place.drafted, place.tested, place.accepted) for place in metrics.positions]
    assert table == [(3, 3, 2), (3, 2, 1), (1, 1, 1)]


def test_plain_decoding_is_one():
    metrics = Metrics.of(trace_of((0, 0, 0, 0, 1), (0, 0, 0, 0, 1), (0, 0, 0, 0, 1)))
    assert metrics.mean_accepted_tokens == 1
    assert metrics.mean_accepted_drafts == 0
    assert metrics.positions == ()


def test_where_the_time_went():
    trace = trace_of((0, 0, 0, 0, 1))
    trace.spans = [
        Span("target", 0, 4),
        Span("drafter", 4, 7),
        Span("drafter.model", 5, 6.5),
        Span("target", 7, 9),
    ]
    metrics = Metrics.of(trace)
    assert (metrics.target_seconds, metrics.drafter_seconds, metrics.drafter_model_seconds) == (6, 3, 1.5)
    assert metrics.host_seconds == pytest.approx(10 - 6 - 1.5)


def step(trace, accepted, stop=(), new=10):
    seq = Sequences.start([[1]], new, stop)
    draft = Draft.chain(torch.tensor([[5, 6, 7]]), seq.lengths, torch.tensor([3]))
    path = torch.tensor([[*range(accepted), *[-1] * (3 - accepted)]])
    verdict = Verdict(path, torch.tensor([accepted]), torch.tensor([9]))
    after = seq.append(draft, verdict)
    trace.round(report(seq, after, draft, verdict, NO_FAULTS))
    return after


def test_a_window_is_counted_up_to_the_end_token():
    trace = Trace()
    after = step(trace, accepted=3, stop=[6])
    assert after.done
    assert after.tokens[0, :3].tolist() == [1, 5, 6]
    assert trace.rounds == [Round(row=0, drafted=2, nodes=3, accepted=2, committed=2)]


def test_an_end_token_behind_the_path_does_not_count():
    after = step(Trace(), accepted=1, stop=[7])
    assert not after.done
    assert after.tokens[0, :3].tolist() == [1, 5, 9]


def test_the_limit_cuts_the_window():
    trace = Trace()
    after = step(trace, accepted=3, new=2)
    assert after.done
    assert trace.rounds == [Round(0, 2, 3, 2, 2)]


def test_an_end_token_beyond_the_limit_is_not_committed():
    after = step(Trace(), accepted=3, stop=[7], new=2)
    assert after.tokens[0].tolist() == [1, 5, 6]
    assert after.done


def test_rows_that_have_ended_are_not_recorded():
    trace = Trace()
    after = step(trace, accepted=0, new=1)
    draft = Draft.empty(after.lengths)
    verdict = Verdict(after.lengths.new_empty(1, 0), torch.tensor([0]), torch.tensor([9]))
    trace.round(report(after, after.append(draft, verdict), draft, verdict, NO_FAULTS))
    assert len(trace.rounds) == 1
    assert torch.equal(after.append(draft, verdict).tokens, after.tokens)


def test_spans_come_from_forwards():
    trace, network, several = Trace(clock=iter(range(100)).__next__), torch.nn.Linear(2, 2), torch.nn.ReLU()
    with trace.running({"target": (network,), "drafter.model": (several, torch.nn.Tanh()), "link.draft": ()}):
        network(torch.zeros(1, 2))
        several(torch.zeros(1, 2))
        network(torch.zeros(1, 2))
    network(torch.zeros(1, 2))
    assert trace.spans == [Span("target", 1, 2), Span("drafter.model", 3, 4), Span("target", 5, 6)]
    assert (trace.start, trace.end) == (0, 7)
