"""Suffix automaton drafting: continue the longest suffix that occurred before, however long it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from drafters.automaton import BREAK, SuffixAutomaton
from drafters.window import chains, check_length
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Want


class SuffixDrafter:
    """Proposes what followed the latest earlier occurrence of the row's longest repeated suffix.

    SAM decoding (Hu et al., arXiv 2411.10666) and SuffixDecoding (Oliaro et al., arXiv 2411.04975). The longer
    the match, the more of its continuation is proposed.

    Args:
        length: most tokens to propose.
        per_match: tokens to propose per matched token.
        min_match: shortest match to trust.
        corpus: token ids of texts to look in besides the row itself; the longer match wins.

    Raises:
        ValueError: a length, per_match or min_match below 1.
    """

    wants: tuple[Want, ...] = ()
    static = False

    def __init__(
        self,
        length: int = 16,
        per_match: int = 2,
        min_match: int = 2,
        corpus: Iterable[Sequence[int]] | None = None,
    ) -> None:
        if per_match < 1 or min_match < 1:
            raise ValueError(f"per_match and min_match must be at least 1, not {per_match} and {min_match}")
        self.length, self.per_match, self.min_match = check_length(length), per_match, min_match
        self._corpus = SuffixAutomaton(token for text in corpus or () for token in (*text, BREAK))
        self._rows: list[_Row] = []

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return self.length

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the rows of the last generation."""
        self._rows = [_Row(self._corpus) for _ in seq.prompts]

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain for every row in which a suffix repeats."""
        room = context.room.tolist()
        return chains([self._propose(b, context, room[b]) for b in range(len(room))], context)

    def _propose(self, index: int, context: Context, room: int) -> list[int]:
        if room < 2:  # the target's own token fills the row
            return []
        row = self._rows[index]
        row.follow(context.row(index))
        matched, end, text = row.match()
        if matched < self.min_match:
            return []
        return text.following(end, min(self.length, self.per_match * matched, room - 1))


class _Row:
    """The automaton of one row, and where the row stands in the corpus."""

    def __init__(self, corpus: SuffixAutomaton) -> None:
        self.own, self.corpus = SuffixAutomaton(), corpus
        self.place = (0, 0)

    def follow(self, tokens: list[int]) -> None:
        """Read the tokens that are new; a row that does not continue what was read starts afresh."""
        known = len(self.own.tokens)
        if tokens[:known] != self.own.tokens:
            self.own, self.place, known = SuffixAutomaton(), (0, 0), 0
        for token in tokens[known:]:
            self.own.append(token)
            self.place = self.corpus.step(*self.place, token)

    def match(self) -> tuple[int, int, SuffixAutomaton]:
        """Length and end of the longest match, and the text it is in; the row itself wins a tie."""
        matched, end = self.own.earlier
        state, length = self.place
        if length > matched:
            return length, self.corpus.ends[state], self.corpus
        return matched, end, self.own
