"""How fast a drafter with streams drafts (arXiv 2402.11131). C candidates, E streams, N drafted tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How much is drafted, and how fast.

    Attributes:
        length: most tokens.
        steps: most forwards, that of the root included.
        streams: E.
        candidates: C, tokens that are guessed side by side from the first stream's law.
    """

    length: int
    steps: int
    streams: int
    candidates: int = 1

    @property
    def most(self) -> int:
        """N: the root's forward yields a token, each other one up to 1 + E."""
        return min(self.length, 1 + (self.steps - 1) * (1 + self.streams))

    @property
    def last(self) -> int:
        """The last forward, where that of the root is 0; behind forward n there are more than n tokens."""
        return min(self.steps, self.length) - 1

    def guesses(self, step: int) -> int:
        """Guesses behind each other that a forward verifies: so many as may still be drafted, and one less."""
        return max(0, min(self.streams, self.length - step - 1)) if step <= self.last else 0
