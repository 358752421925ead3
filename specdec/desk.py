"""What a drafter that works ahead has before it in one generation.

B rows, M = N + 1 places of a window, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from specdec.book import Book
from specdec.messages import Opening
from specdec.noise import Noise
from specdec.rows import noise_of
from specdec.sequences import Sequences
from specdec.trace import Span
from specdec.types import Advice, Context, Draft


@dataclass
class Desk:
    """The rows, their window, and what is known of its future.

    Attributes:
        generation, round: which, and the round whose outcome is next.
        seq: the rows.
        noise: of the drafts.
        weighs: whether the acceptance rule looks at the drafter's laws.
        window: that the target verifies.
        own: [B, M, V], the drafter's own logits over it, None before it has looked.
        book: what is prepared.
        settled: the last round whose outcome was taken.
        spans: what was done for the next hand-over.
        advice: what was heard of the target since the drafter was asked last.
    """

    generation: int
    round: int
    seq: Sequences
    noise: Noise
    weighs: bool
    window: Draft
    own: Tensor | None = None
    book: Book | None = None
    settled: int = -1
    spans: list[Span] = field(default_factory=list)
    advice: Advice | None = None

    @classmethod
    def of(cls, opening: Opening, seq: Sequences) -> Desk:
        """At the beginning of a generation, or where it goes on."""
        noise, none = noise_of(opening, seq.tokens.device), Draft.empty(seq.lengths)
        return cls(opening.generation, opening.round, seq, noise, opening.weighs, none)

    def context(self) -> Context:
        """The rows, with what was heard of the target since the last time."""
        advice, self.advice = self.advice, None
        return self.seq.context(advice)
