"""Drafting with heads on the target's last hidden state: what Medusa, Hydra and ReDrafter have in common.

B rows, S token slots, K tokens that the target read last, W nodes of one level, N nodes of a draft, X hidden size,
Y numbers that a node remembers, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from drafters.fitting import same_target
from specdec import tree
from specdec.runtime.huggingface import Network
from specdec.runtime.model import Scores
from specdec.types import Advice, Draft, Tap


class Heads(Protocol):
    """What heads say of the tokens ahead. Level 0 is about the token behind the newest committed one.

    The state is of the token before the newest committed one, the last that the target has read, and is taken
    behind the target's final norm.

    Attributes:
        levels: how many tokens ahead there are heads for, None where one head goes on and on.
        hidden: X of the states that are read.
        vocabulary: V of what is said, None where the target's own head says it.
        target_layers: of the target that they were made for, None where nobody knows.
    """

    levels: int | None
    hidden: int
    vocabulary: int | None
    target_layers: int | None

    def start(self, state_BWX: Tensor) -> Tensor:
        """What a node remembers [B, W, Y] before a token is read."""
        ...

    def read(self, level: int, memory_BWY: Tensor, tokens_BW: Tensor, target: Network) -> Tensor:
        """What a node remembers once it has read a token behind what its parent remembers. Y may grow."""
        ...

    def say(self, level: int, memory_BWY: Tensor, target: Network) -> Tensor:
        """Logits [B, W, V] of the token behind."""
        ...


class Block(nn.Module):
    """``x + silu(W x + b)``, the residual block of all these heads."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to [..., size]."""
        return x + silu(self.linear(x))


class HeadModel:
    """Heads as a model that grows drafts, see ``drafters.roots.DraftModel``: no cache, but a state per row.

    A tree grows level by level: the nodes of one ``grow`` hang off those of the last.
    """

    remembers = False  # what it drafted it has to be told of by the target

    def __init__(self, heads: Heads, target: Network) -> None:
        self.heads, self.target, self.tap = heads, target, Tap(target.depth)
        self._rows: dict[int, Rows] = {}

    def serves(self, target: Network) -> bool:
        """Whether it was made for a target with these very weights."""
        return same_target(self.target, target)

    def begin(self, rows: int, target: Network) -> None:
        """Forget the states. Those of as many rows lie where they lay before, for what was recorded with them.

        ``target`` is one with the same weights that nobody else runs at the same time.
        """
        self.target = target
        if rows not in self._rows:
            self._rows[rows] = Rows.blank(rows, self.heads.hidden, self.target)
        self._now = self._rows[rows]
        self._now.known.zero_()

    def follow(self, advice: Advice | None) -> None:
        """Take the newest state of every row; a row without a new one keeps what it has."""
        if advice is None or self.tap not in advice.states or advice.positions.shape[1] == 0:
            return
        newest_B1, where_B1 = advice.positions.max(1, keepdim=True)
        state_BKX = advice.states[self.tap]
        state_B1X = state_BKX.gather(1, where_B1[..., None].expand(-1, -1, state_BKX.shape[2]))
        state_B1X = torch.where(newest_B1[..., None] >= 0, self.target.norm(state_B1X), self._now.state)
        self._now.state.copy_(state_B1X)
        self._now.known.logical_or_(newest_B1[:, 0] >= 0)

    def kept(self, draft: Draft) -> Draft:
        """A draft with padding where a row has no state."""
        parents_BN = torch.where(self._now.known[:, None], draft.parents, tree.PAD)
        return replace(draft, parents=parents_BN)

    def advance(
        self,
        tokens_BS: Tensor,
        lengths_B: Tensor,
        nodes: tuple[Tensor, Tensor] | None = None,
        *,
        behind: int | None = None,
        chain: bool = False,
        reads: int = 0,
    ) -> Scores:
        """Logits [B, 1, V] behind the newest committed token."""
        self._level, self._first = 0, tree.ROOT
        return Scores(self._read(self.heads.start(self._now.state), tokens_BS.gather(1, lengths_B[:, None] - 1)))

    def grow(self, tokens_BW: Tensor, parents_BW: Tensor, chain: bool = False) -> Tensor:
        """Logits [B, W, V] behind nodes of the next level; parents count from the first node that was grown."""
        above_BW1 = (parents_BW - self._first)[..., None]
        self._level, self._first = self._level + 1, self._first + self._memory.shape[1]
        memory_BWY = self._memory.gather(1, above_BW1.expand(-1, -1, self._memory.shape[2]))
        return self._read(memory_BWY, tokens_BW)

    def remember(self) -> None:
        """Nothing: the states of what is accepted come from the target."""

    def hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        """Raises ValueError: there is no state of a window that the target has not verified."""
        raise ValueError("heads on the target's states cannot draft beside a window that it has not read")

    def _read(self, memory_BWY: Tensor, tokens_BW: Tensor) -> Tensor:
        self._memory = self.heads.read(self._level, memory_BWY, tokens_BW, self.target)
        return self.heads.say(self._level, self._memory, self.target)


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of a generation.

    Attributes:
        state: [B, 1, X], the newest state, behind the final norm.
        known: bool [B], whether there is one.
    """

    state: Tensor
    known: Tensor

    @classmethod
    def blank(cls, rows: int, hidden: int, target: Network) -> Rows:
        """Rows of which nothing is known."""
        return cls(
            torch.zeros(rows, 1, hidden, dtype=target.dtype, device=target.device),
            torch.zeros(rows, dtype=torch.bool, device=target.device),
        )
