"""Position-keyed noise: a pure function of (seed, row, position, lane, index), the same integers on every device.

Counter-based, after Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
There is no generator state: device placement, batch order and schedule cannot change the tokens.

B rows, V target vocabulary; ``...`` stands for any further shape.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Lane(IntEnum):
    """What a number is used for. Numbers of different lanes are independent."""

    DRAFT = 0  # tokens that a drafter draws
    ACCEPT = 1  # accept or reject, one number per sibling
    TARGET = 2  # tokens that the target draws: corrections, bonus tokens, plain decoding
    RACE = 3  # one number per vocabulary entry, shared by drafter and target


def philox(counter: tuple[Tensor, ...], key: tuple[int, ...] | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit counter words (broadcast) to four of random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A 64-bit product wraps around, but its two 32-bit halves stay the right bits.
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c2 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, ((p0 >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


class Noise:
    """The random numbers of one generation.

    Args:
        seed: any integer; its low 64 bits are used.
        rows_B: int64 [B], which sequence each row is. Rows of equal number get equal noise.
        positions: positions that will be asked for are below this.
        coupled: whether drafters share the target's noise (see ``Coupled``).
    """

    def __init__(self, seed: int, rows_B: Tensor, positions: int, coupled: bool = False) -> None:
        self.key = tuple(torch.tensor(word, device=rows_B.device) for word in (seed & _WORD, (seed >> 32) & _WORD))
        self.rows = rows_B
        self.positions = positions
        self.coupled = coupled
        self._tables: dict[tuple[Lane, int], Tensor] = {}

    @property
    def identity(self) -> object:
        """What a recording may take it for."""
        return self

    def reseed(self, seed: int) -> None:
        """Turn into the noise of another seed, in place: what was recorded with this one draws from it."""
        for word, value in zip(self.key, (seed & _WORD, (seed >> 32) & _WORD), strict=True):
            word.fill_(value)
        for (lane, block), table_BS in self._tables.items():
            table_BS.copy_(self._numbers(lane, block))

    def words(self, positions: Tensor, lane: Lane, blocks: Tensor) -> Tensor:
        """int64 [B, ..., 4 * blocks]: 32-bit words for each position, [B, ...]; a block is four words."""
        row = self.rows.reshape(-1, *[1] * positions.dim())
        zero = torch.zeros_like(positions[..., None])
        words = philox((blocks, positions[..., None], row + zero, zero + int(lane)), self.key)
        return torch.stack(torch.broadcast_tensors(*words), -1).flatten(-2)

    def uniform(self, positions: Tensor, lane: Lane, index: int | Tensor = 0) -> Tensor:
        """float64 [B, ...] in (0, 1), for positions of shape [B, ...]; a tensor gives each an index of its own."""
        # A node past the end of its row can never be committed: any number will do for it.
        inside = positions.clamp(max=self.positions - 1)
        if isinstance(index, Tensor):
            words = self.words(inside, lane, (index // 4)[..., None])
            return ((words + 0.5) / 2.0**32).gather(-1, (index % 4)[..., None])[..., 0]
        table_BS = self._table(lane, index // 4)[..., index % 4]
        return table_BS.gather(1, inside.flatten(1)).reshape(positions.shape)

    def _table(self, lane: Lane, block: int) -> Tensor:
        # All positions at once: a hundred small launches for one number would cost more than the model.
        if (lane, block) not in self._tables:
            self._tables[lane, block] = self._numbers(lane, block)
        return self._tables[lane, block]

    def _numbers(self, lane: Lane, block: int) -> Tensor:
        span_BS = torch.arange(self.positions, device=self.rows.device).expand(len(self.rows), -1)
        words = self.words(span_BS, lane, torch.full((1,), block, device=self.rows.device))
        return (words + 0.5) / 2.0**32

    def accepts(self, chance: Tensor, positions: Tensor, index: int = 0) -> Tensor:
        """bool [B, ...]: true with probability ``chance``; ``index`` tells several at one position apart."""
        return self.uniform(positions, Lane.ACCEPT, index) < chance

    def draw(self, laws: Tensor, positions: Tensor, lane: Lane = Lane.TARGET, index: int | Tensor = 0) -> Tensor:
        """int64 [B, ...]: a token from each law [B, ..., V] (need not be normalised), by inversion."""
        # In float64: the sum over a large vocabulary must not move small probabilities.
        below = laws.double().cumsum(-1)
        level = self.uniform(positions, lane, index)[..., None] * below[..., -1:]
        return torch.searchsorted(below, level, right=True)[..., 0]

    def race(self, laws: Tensor, positions: Tensor) -> Tensor:
        """int64 [B, ...]: a token from each law [B, ..., V], as the winner of an exponential race.

        Equal in law to Gumbel-max. Two laws that are close choose the same token with high probability,
        since a token's finishing time depends on (seed, row, position, token) alone.
        """
        blocks = torch.arange(math.ceil(laws.shape[-1] / 4), device=laws.device)
        words = self.words(positions, Lane.RACE, blocks)[..., : laws.shape[-1]]
        chance = (words + 0.5).to(laws.dtype) / 2.0**32
        return (laws / -torch.log1p(-chance)).argmax(-1)

    def propose(self, laws: Tensor, lengths: Tensor, depth: int | Tensor, sibling: int = 0) -> Tensor:
        """int64 [B, ...]: a drafter's token from each of its laws [B, ..., V].

        Its numbers are keyed by the committed length and the depth in the draft, so that every draft has new
        ones: a rule may have looked at the whole of an earlier draft over the same positions (``Block`` does),
        and what it decided would then tell something about the next.

        Args:
            laws: [B, ..., V].
            lengths: int64 [B, ...], committed tokens.
            depth: 0 for the first drafted token; int64 [B, ...] where not all are of the same.
            sibling: tells draws under the same parent apart.
        """
        if self.coupled:
            return self.race(laws, lengths + depth)
        return self.draw(laws, lengths, Lane.DRAFT, depth + (sibling << 16))


class Still(Noise):
    """No noise, for greedy decoding: every law is a point mass, or stands for its most likely token."""

    def __init__(self) -> None:
        super().__init__(0, torch.zeros(0, dtype=torch.int64), 0)

    @property
    def identity(self) -> object:
        return Still

    def accepts(self, chance: Tensor, positions: Tensor, index: int = 0) -> Tensor:
        return chance > 0.5

    def draw(self, laws: Tensor, positions: Tensor, lane: Lane = Lane.TARGET, index: int | Tensor = 0) -> Tensor:
        return laws.argmax(-1)

    def race(self, laws: Tensor, positions: Tensor) -> Tensor:
        return laws.argmax(-1)

    def propose(self, laws: Tensor, lengths: Tensor, depth: int | Tensor, sibling: int = 0) -> Tensor:
        return laws.argmax(-1)
