"""The decoding loop: *when* the drafter and the target work. How they work is theirs."""

from __future__ import annotations

from specdec.noise import Noise
from specdec.protocols import AcceptanceRule, Drafter, Verifier
from specdec.sequences import Sequences
from specdec.trace import Trace
from specdec.types import Draft


def serial(
    seq: Sequences, drafter: Drafter, verifier: Verifier, accept: AcceptanceRule, noise: Noise, trace: Trace
) -> Sequences:
    """Draft, verify, commit, in turns (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318)."""
    draft = Draft.empty(seq.lengths)  # prefill is round zero, not a special case
    while not seq.done:
        evidence = verifier.score(seq, draft)
        verdict = accept(draft, evidence.laws(), noise)
        before, seq = seq, verifier.commit(seq, draft, verdict)
        trace.round(before, seq, draft, verdict)
        if not seq.done:
            draft = drafter.draft(seq.context(evidence.along(verdict)), noise)
    return seq
