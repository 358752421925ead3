"""From rows to rows: the loops with their parts put together.

In turns or ahead, with every operation launched by the host or replayed on the device; on a clock that is read
or on one that is paid.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import torch

from specdec.channel import Inline
from specdec.channel.sides import absent
from specdec.duet import Duet
from specdec.exit import Exit
from specdec.guard import Guarded
from specdec.loop import pipelined, serial
from specdec.messages import Opening, moved
from specdec.noise import Noise, Still
from specdec.overheard import Overheard
from specdec.partner import Partner
from specdec.protocols import AcceptanceRule, Channel, Drafter, Forecast, Verifier
from specdec.runtime import models_of
from specdec.runtime.clock import DeviceClock
from specdec.runtime.replay import Replay, current
from specdec.runtime.streams import Side
from specdec.sequences import Sequences
from specdec.stage import Live, Stage, reading_width
from specdec.trace import Networks, Trace
from specdec.transit import crossings
from specdec.virtual import Scene, VirtualClock


def in_turns(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    channel: Channel,
) -> Sequences:
    """Decode by the serial loop, in one host thread whatever the channel."""
    if verifier.replay is not None and channel.costs is None:
        return replayed(seq, drafter, verifier, accept, seed, trace)
    return plainly(seq, drafter, verifier, accept, seed, trace, channel)


def ahead(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    forecast: Forecast,
    channel: Channel,
) -> Sequences:
    """Decode by the pipelined loop. In one host thread devices work side by side if their rounds are replayed."""
    if verifier.replay is not None and isinstance(channel, Inline):
        return together(seq, drafter, verifier, accept, seed, trace, forecast)
    return pipeline(seq, drafter, verifier, accept, seed, trace, forecast, channel)


def plainly(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    channel: Channel,
) -> Sequences:
    """Decode with every operation launched by the host."""
    refuse_width(verifier)
    guarded = Guarded(drafter, trace)
    guarded.begin(verifier, seq)
    verifier.begin(seq, guarded.wants)
    stage = staged(channel, trace, verifier, {"drafter.model": modules(drafter)})
    with trace.running(stage.networks):
        return serial(seq, guarded, verifier, accept, noise_for(seq, seed, accept), trace, stage)


def pipeline(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    forecast: Forecast,
    channel: Channel,
) -> Sequences:
    """Decode while the drafter works on its own side of a channel."""
    refuse_width(verifier)
    stage = staged(channel, trace, verifier, {}, forecast.exit)
    with channel.link(drafter, forecast, verifier, trace.clock) as link, trace.running(stage.networks):
        partner = Partner(link, trace, channel.patience)
        partner.open(opening(seq, verifier, accept, seed), verifier.device)
        verifier.begin(seq, partner.wants, forecast.exit)
        heard = cast(Verifier, Overheard(verifier, partner.weigh))
        return pipelined(seq, partner, heard, accept, noise_for(seq, seed, accept), trace, stage)


def together(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    seed: int,
    trace: Trace,
    forecast: Forecast,
) -> Sequences:
    """Decode while the drafter works on its own queue, of this device or another; rounds are replayed on both."""
    replay = cast(Replay, verifier.replay)
    guarded = Guarded(drafter, trace, replay)
    rows, slots = seq.tokens.shape
    seq = replace(seq.padded(verifier.model.room(rows, capacity(slots))), static=True)
    target = absent(drafter, verifier)
    if target.device not in replay.sides:
        replay.sides[target.device] = Side(verifier.device, target.device, replay.beside())
    side: Side = replay.sides[target.device]
    trace.lag = 1
    check_width(verifier, drafter)
    if seq.tokens.is_cuda:
        trace.clock = DeviceClock()
    with current(verifier.device), trace.running({}):
        theirs = moved(seq, side.drafter)
        noise = noise_for(theirs, seed, accept, side.replay)
        side.begin()
        with side(), trace.span("drafter"):  # a model reads the prompt
            refusal = guarded.refusal(cast(Verifier, target), theirs)
        if refusal:
            raise ValueError(refusal)
        verifier.begin(seq, guarded.wants, forecast.exit)
        network = verifier.model.network
        outlet = network if forecast.exit is None else network.outlet(side.drafter)
        reads = reading_width(int(seq.prompts.max()), rows)
        duet = Duet(drafter, guarded, outlet, forecast, accept.weighs, side, trace, reads)
        duet.open(theirs, noise)
        stage = Stage(replay, trace, (verifier.model,), guarded.static, verifier.width, reads)
        seq = pipelined(seq, duet, verifier, accept, noise_for(seq, seed, accept, replay), trace, stage)
    trace.spans += crossings(trace.spans)
    return seq


def staged(
    channel: Channel,
    trace: Trace,
    verifier: Verifier,
    networks: Networks,
    exit: Exit | None = None,
) -> Live | Scene:
    """What plays the parts at the target's side; ``networks`` are further ones to time. The clock is set."""
    if channel.costs is None:
        return Live(trace, {"target": modules(verifier), **networks})
    trace.clock = clock = VirtualClock()
    depth = verifier.model.network.depth
    return Scene(trace, clock, channel.costs, None if exit is None else exit.of(verifier.model) / depth)


def opening(seq: Sequences, verifier: Verifier, accept: AcceptanceRule, seed: int) -> Opening:
    """What the drafter's side must know of a generation."""
    return Opening(
        generation=time.monotonic_ns(),
        round=0,
        tokens=seq.tokens,
        lengths=seq.lengths,
        prompts=seq.prompts,
        limits=seq.limits,
        sampling=seq.sampling,
        seed=seed,
        coupled=accept.coupled,
        weighs=accept.weighs,
        vocab_size=verifier.vocab_size,
    )


def replayed(
    seq: Sequences, drafter: Drafter, verifier: Verifier, accept: AcceptanceRule, seed: int, trace: Trace
) -> Sequences:
    """Decode with rounds replayed on the device, while the host reads what the one before has done."""
    replay = cast(Replay, verifier.replay)
    guarded = Guarded(drafter, trace, replay)
    rows, slots = seq.tokens.shape
    seq = replace(seq.padded(verifier.model.room(rows, capacity(slots))), static=True)
    drafts = getattr(drafter, "static", False)
    # A drafter on the host asks for the tokens themselves: nothing is won by not knowing them.
    trace.lag = 1 if drafts else 0
    check_width(verifier, drafter)
    if seq.tokens.is_cuda:
        trace.clock = DeviceClock()
    with current(verifier.device), trace.running({}):
        with trace.span("drafter"):  # a model reads the prompt
            guarded.begin(verifier, seq)
        verifier.begin(seq, guarded.wants)
        models = (verifier.model, *(models_of(drafter) if drafts else ()))
        reads = reading_width(int(seq.prompts.max()), rows)
        stage = Stage(replay, trace, models, drafts, verifier.width, reads)
        return serial(seq, guarded, verifier, accept, noise_for(seq, seed, accept, replay), trace, stage)


def check_width(verifier: Verifier, drafter: Drafter) -> None:
    """Raises ValueError where drafts do not fit the width of all forwards."""
    size = getattr(drafter, "size", 0)
    if verifier.width is not None and size >= verifier.width:
        raise ValueError(
            f"the target's width is {verifier.width}, but drafts have up to {size} tokens: it must be {size + 1}"
        )


def refuse_width(verifier: Verifier) -> None:
    """Raises ValueError for a width where rounds are not replayed, and so would be as wide as their drafts."""
    if verifier.width is not None:
        raise ValueError(
            f"the target's width of {verifier.width} is kept by replayed rounds only: choose channel=inline"
        )


def capacity(slots: int) -> int:
    """Token slots for rows of so many: few sizes, so that few recordings are made."""
    return max(512, 1 << (slots - 1).bit_length()) if slots <= 4096 else -(-slots // 4096) * 4096


def noise_for(seq: Sequences, seed: int, accept: AcceptanceRule, replay: Replay | None = None) -> Noise:
    """The noise of a generation; none when greedy."""
    if seq.sampling.greedy:
        return Still()
    if replay is not None:
        return replay.noise(seed, len(seq.tokens), seq.tokens.shape[1], accept.coupled, seq.tokens.device)
    rows_B = torch.arange(len(seq.lengths), device=seq.lengths.device)
    return Noise(seed, rows_B, seq.tokens.shape[1] + 1, accept.coupled)


def modules(part: object) -> tuple[torch.nn.Module, ...]:
    """The modules whose forwards are the steps of a part's models."""
    return tuple(dict.fromkeys(model.network.module for model in models_of(part)))
