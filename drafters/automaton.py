"""The suffix automaton: every substring of a text, built token by token in amortised constant time."""

from __future__ import annotations

from collections.abc import Iterable

BREAK = -1  # stands between two texts of a corpus; no token matches it


class SuffixAutomaton:
    """All substrings of the tokens so far (Blumer et al., 1985), and where each of them last ended.

    Args:
        tokens: the beginning of the text.
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self.next: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.longest = [0]
        self.ends = [-1]
        self._whole = 0
        self.earlier = (0, -1)
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token; afterwards ``earlier`` is (length, end) of the longest suffix that occurred before."""
        self.tokens.append(token)
        state, self._whole = self._whole, self._state({}, 0, self.longest[self._whole] + 1)
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = self._whole
            state = self.link[state]
        if state >= 0:
            self.link[self._whole] = self._target(state, token)
        suffix = self.link[self._whole]
        self.earlier = (self.longest[suffix], self.ends[suffix])
        self._mark()

    def step(self, state: int, matched: int, token: int) -> tuple[int, int]:
        """Follow a token of another text: the state of its longest suffix that occurs here, and its length."""
        while state > 0 and token not in self.next[state]:
            state = self.link[state]
            matched = self.longest[state]
        return (self.next[state][token], matched + 1) if token in self.next[state] else (0, 0)

    def following(self, end: int, count: int) -> list[int]:
        """Up to ``count`` tokens after an occurrence that ends at index ``end``, within its text."""
        tokens = self.tokens[end + 1 : end + 1 + count]
        return tokens[: tokens.index(BREAK)] if BREAK in tokens else tokens

    def _state(self, edges: dict[int, int], link: int, longest: int) -> int:
        self.next.append(edges)
        self.link.append(link)
        self.longest.append(longest)
        self.ends.append(-1)
        return len(self.next) - 1

    def _target(self, state: int, token: int) -> int:
        """The state of the longest suffix that was here before; split off if others share its state."""
        found = self.next[state][token]
        if self.longest[found] == self.longest[state] + 1:
            return found
        copy = self._state(dict(self.next[found]), self.link[found], self.longest[state] + 1)
        self.ends[copy] = self.ends[found]
        self.link[found] = copy
        while state >= 0 and self.next[state].get(token) == found:
            self.next[state][token] = copy
            state = self.link[state]
        return copy

    def _mark(self) -> None:
        state, end = self._whole, len(self.tokens) - 1
        while state > 0:
            self.ends[state] = end
            state = self.link[state]
