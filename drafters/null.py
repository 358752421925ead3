"""No drafter: plain decoding through the same engine."""

from __future__ import annotations

from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Want


class NullDrafter:
    """Proposes nothing. The baseline that a speedup is measured against."""

    wants: tuple[Want, ...] = ()
    static = True
    size = 0

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Nothing to forget."""

    def draft(self, context: Context, noise: Noise) -> Draft:
        """An empty draft."""
        return Draft.empty(context.lengths)
