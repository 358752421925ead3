"""Lookahead decoding: the target guesses several places ahead by Jacobi iteration, beside its own verification.

B rows, N draft nodes, M = N + 1 places of a window.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from drafters.trie import Trie, drafted
from specdec.noise import Noise
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from specdec.types import Context, Draft, Top, Tops, Want


class LookaheadDrafter:
    """Lookahead decoding (Fu et al., arXiv 2402.02057), as a draft tree.

    A window of ``window`` places ahead holds, at each place, a trajectory: what the target said there in the last
    ``ngram`` - 1 rounds. The oldest guesses of all places stand one behind the other, as a chain below the last
    committed token, and each place's later ones as a branch below its own. The target's likeliest token behind
    every branch is the next guess there, and makes it an n-gram for a pool; then the oldest guesses go. Up to
    ``guesses`` n-grams of the pool that begin with the last committed token are further branches. Every node is
    a draft: what is accepted is accepted, from the pool or from the window.

    A row's first guesses are its own last tokens, where the paper draws some of the prompt's. Each row has a pool
    of its own.

    Args:
        window: W, places ahead.
        ngram: N, tokens of an n-gram.
        guesses: G, n-grams to try in a round, and to keep per first token; the latest ones.

    Raises:
        ValueError: window or guesses below 1, or n-grams of fewer than 2 tokens.
    """

    wants: tuple[Want, ...] = (Top(1),)
    static = False

    def __init__(self, window: int = 7, ngram: int = 5, guesses: int = 7) -> None:
        if window < 1 or guesses < 1 or ngram < 2:
            raise ValueError(
                f"window and guesses must be at least 1, and ngram 2, not {window}, {guesses} and {ngram}"
            )
        self.window, self.ngram, self.guesses = window, ngram, guesses
        self._rows: list[_Row] = []

    @property
    def size(self) -> int:
        """Most nodes of a draft."""
        return (self.window + self.guesses) * (self.ngram - 1)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Forget the rows of the last generation."""
        self._rows = [
            _Row(tokens[:length], self.window)
            for tokens, length in zip(seq.tokens.tolist(), seq.lengths.tolist(), strict=True)
        ]

    def draft(self, context: Context, noise: Noise) -> Draft:
        """The window and the pool's guesses of every row, as one tree each."""
        if context.advice is not None and context.advice.tops is not None:
            self._learn(context.advice.tops)
        last_B = context.tokens.gather(1, context.lengths[:, None] - 1)[:, 0].tolist()
        return drafted(
            [
                row.tree(last, self.guesses) if room > 1 else Trie()
                for row, last, room in zip(self._rows, last_B, context.room.tolist(), strict=True)
            ],
            context,
        )

    def _learn(self, tops: Tops) -> None:
        tokens, parents = tops.tokens[:, 1:].tolist(), tops.parents.tolist()
        said = tops.successors[..., 0].tolist()
        for b, row in enumerate(self._rows):
            row.learn(Trie.verified(tokens[b], parents[b]), said[b], self.ngram, self.guesses)


class _Row:
    """The window and the pool of one row.

    Attributes:
        trajectories: what was guessed for each place, the oldest first; all of one length.
        pool: for a token, the (n - 1)-grams that may follow it, the latest last.
    """

    def __init__(self, tokens: Sequence[int], window: int) -> None:
        latest = [tokens[-(1 + place % len(tokens))] for place in reversed(range(window))]
        self.trajectories: list[tuple[int, ...]] = [(token,) for token in latest]
        self.pool: dict[int, OrderedDict[tuple[int, ...], None]] = {}

    def tree(self, last: int, guesses: int) -> Trie:
        """All that the target is to look at behind the last committed token."""
        trie = Trie()
        for guess in reversed(self.pool.get(last, {})):
            trie.add(guess)
        for path in self._paths():
            trie.add(path)
        return trie

    def learn(self, window: Trie, said: Sequence[int], ngram: int, guesses: int) -> None:
        """Take what the target said behind every trajectory; ``said`` is about the root first, then each node.

        Where another window was verified than the last one, as when that was late, nothing changes.
        """
        ends = [window.find(path) for path in self._paths()]
        nodes = [end for end in ends if end is not None]
        if len(nodes) < len(ends):
            return
        grown = [(*guesses, said[node + 1]) for guesses, node in zip(self.trajectories, nodes, strict=True)]
        if len(grown[0]) == ngram:
            for first, *rest in grown:
                self._keep(first, tuple(rest), guesses)
            grown = [trajectory[1:] for trajectory in grown]
        self.trajectories = grown

    def _paths(self) -> list[tuple[int, ...]]:
        """Each place's way from the root: the oldest guesses up to it, then its own later ones."""
        firsts = tuple(trajectory[0] for trajectory in self.trajectories)
        return [(*firsts[: place + 1], *trajectory[1:]) for place, trajectory in enumerate(self.trajectories)]

    def _keep(self, first: int, rest: tuple[int, ...], guesses: int) -> None:
        kept = self.pool.setdefault(first, OrderedDict())
        kept.pop(rest, None)
        kept[rest] = None
        while len(kept) > guesses:
            kept.popitem(last=False)
