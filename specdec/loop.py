"""The decoding loop: *when* the drafter and the target work. How they work is theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specdec.acceptance.follow import follow
from specdec.exit import Hint
from specdec.guard import admit
from specdec.noise import Noise
from specdec.protocols import AcceptanceRule, Drafter, DraftPartner, Verifier
from specdec.report import report
from specdec.sequences import Sequences
from specdec.trace import Trace
from specdec.turn import Turn
from specdec.types import Advice, Draft


def verify(
    seq: Sequences,
    draft: Draft,
    verifier: Verifier,
    accept: AcceptanceRule,
    noise: Noise,
    hint: Hint | None = None,
) -> Turn:
    """Score the draft, decide, commit; ``hint`` sees the early exit on the way."""
    draft, faults = admit(draft, seq.lengths, seq.room, verifier.vocab_size)
    evidence = verifier.score(seq, draft, hint)
    if seq.sampling.greedy and accept.lossless:  # all such rules are one, and ask for no law
        verdict = follow(draft, evidence.choices())
    else:
        verdict = accept(draft, evidence.laws(), noise)
    after = verifier.commit(seq, draft, verdict)
    return Turn(after, evidence.along(verdict), evidence.early, report(seq, after, draft, verdict, faults))


def propose(seq: Sequences, advice: Advice | None, drafter: Drafter, noise: Noise) -> Draft:
    """Draft for the rows as they stand."""
    return drafter.draft(seq.context(advice), noise)


def directly(part: Callable[..., Any], *arguments: Any) -> Any:
    """Play a part of a round by calling it."""
    return part(*arguments)


def serial(
    seq: Sequences,
    drafter: Drafter,
    verifier: Verifier,
    accept: AcceptanceRule,
    noise: Noise,
    trace: Trace,
    play: Callable[..., Any] = directly,
) -> Sequences:
    """Draft, verify, commit, in turns (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318)."""
    draft = Draft.empty(seq.lengths)  # prefill is round zero, not a special case
    while not trace.done:
        turn = play(verify, seq, draft, verifier, accept, noise)
        trace.round(turn.report)
        seq = turn.seq
        if not trace.done:
            draft = play(propose, seq, turn.advice, drafter, noise)
    return seq


def pipelined(
    seq: Sequences,
    partner: DraftPartner,
    verifier: Verifier,
    accept: AcceptanceRule,
    noise: Noise,
    trace: Trace,
    play: Callable[..., Any] = directly,
) -> Sequences:
    """Draft the next window while this one is verified, for every outcome that a forecast makes likely.

    Mirror Speculative Decoding (arXiv 2510.13161), SSD (arXiv 2603.03251) and PEARL (arXiv 2408.11850) differ in
    the forecast alone. Rows whose outcome was prepared go on with that draft, the others wait for a fresh one: the
    draft that ``serial`` would make, either way.
    """
    draft = Draft.empty(seq.lengths)
    while not trace.done:
        turn = play(verify, seq, draft, verifier, accept, noise, partner.hint)  # the partner drafts meanwhile
        trace.round(turn.report)
        seq = turn.seq
        if not trace.done:
            draft = partner.settle(turn)  # the rendezvous
    return seq
