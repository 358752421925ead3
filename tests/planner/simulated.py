"""The schedules played out token by token on two clocks, as their papers describe them; no formula is used.

A round is (tokens, ms, target at work, drafter at work, target waiting for drafts), in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass
class Device:
    """Something that does one thing at a time, on its own clock."""

    clock: float = 0.0
    work: float = 0.0

    def spend(self, ms, not_before=0.0):
        self.clock = max(self.clock, not_before) + ms
        self.work += ms
        return self.clock


def accepted(random, rates):
    """How many tokens pass before the first that fails."""
    for length, rate in enumerate(rates):
        if random.random() >= rate:
            return length
    return len(rates)


def draft(drafter, tokens, step, per_step, not_before=0.0):
    """Step until enough tokens are there."""
    drafter.clock = max(drafter.clock, not_before)
    while tokens > 0:
        drafter.spend(step)
        tokens -= per_step
    return drafter.clock


def serial(random, rates, rounds, *, target, step, per_step=1, host=0.0):
    for _ in range(rounds):
        verifier, drafter = Device(), Device()
        ready = draft(drafter, len(rates), step, per_step)
        end = verifier.spend(target(len(rates) + 1), ready) + host
        yield accepted(random, rates) + 1, end, verifier.work, drafter.work, ready


def pearl(random, rates, rounds, *, target, step, final=0.0, host=0.0):
    """In the paper's terms: γ tokens a round, the first of them verified while the others are being drawn.

    ``rates`` are the γ acceptances; pending are the tokens that were drawn and not yet verified.
    """
    gamma, pending = len(rates), 0
    for _ in range(rounds):
        verifier, drafter = Device(), Device()
        drawn = draft(drafter, gamma, step, 1)
        scored = verifier.spend(target(pending + 1))
        # The forward over the pending tokens also gives the law for the first token of those being drawn.
        good = accepted(random, rates[: pending + 1])
        tokens, pending = (good, gamma - 1) if good == pending + 1 else (good + 1, 0)
        end = max(drawn, scored) + final + host
        yield tokens, end, verifier.work, drafter.work, max(0.0, drawn - scored)


def enumeration(random, rates, hits, rounds, *, target, step, wide, look=0.0, per_step=1, final=0.0, host=0.0):
    for _ in range(rounds):
        verifier, drafter = Device(), Device()
        drafter.spend(look)
        prepared = draft(drafter, len(rates), wide, per_step)
        scored = verifier.spend(target(len(rates) + 1))
        yield _met(random, rates, hits, verifier, drafter, scored, prepared, step, per_step, final + host)


def mirror(
    random, rates, hits, rounds, *, target, step, wide, share, look=0.0, head=0.0, early=0.0, final=0.0, host=0.0
):
    for _ in range(rounds):
        verifier, drafter = Device(), Device()
        drafter.spend(look)
        forward = target(len(rates) + 1)
        verifier.spend(share * forward)
        told = verifier.spend(head) + early
        prepared = draft(drafter, len(rates), wide, 1, not_before=told)
        scored = verifier.spend((1 - share) * forward, not_before=told)
        yield _met(random, rates, hits, verifier, drafter, scored, prepared, step, 1, final + host)


def _met(random, rates, hits, verifier, drafter, scored, prepared, step, per_step, overhead):
    length = accepted(random, rates)
    met = ready = max(scored, prepared)
    if random.random() >= hits[length]:
        ready = draft(drafter, len(rates), step, per_step, not_before=met)
    return length + 1, ready + overhead, verifier.work, drafter.work, ready - scored


def deviations(rounds, timing, batches=100):
    """How many standard errors a predicted round lies off the simulated ones: each figure, then ms per token.

    The error comes from means over batches of consecutive rounds, since a round may depend on the one before.
    """
    rounds = list(rounds)
    size = len(rounds) // batches
    means = [
        [sum(column) / size for column in zip(*rounds[start * size : (start + 1) * size], strict=True)]
        for start in range(batches)
    ]
    samples = [[*mean, mean[1] / mean[0]] for mean in means]
    predicted = [timing.tokens, timing.ms, timing.target, timing.drafter, timing.exposed, timing.ms_per_token]
    return [_sigmas(column, value) for column, value in zip(zip(*samples, strict=True), predicted, strict=True)]


def _sigmas(column, predicted):
    mean = sum(column) / len(column)
    error = sqrt(sum((value - mean) ** 2 for value in column) / (len(column) - 1) / len(column))
    # Figures without any chance in them have to agree to rounding.
    return abs(mean - predicted) / max(error, 1e-9 * max(1.0, abs(mean)))
