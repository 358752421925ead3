"""The small frozen values that travel between drafter, verifier and acceptance rule.

Shape suffixes: B sequences (rows), N draft nodes, M = N + 1 (the last committed token, then the nodes),
D depth slots of a path, R siblings under one parent, V target vocabulary, S token slots, K tapped tokens,
k likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import tree
from specdec.sampling import Sampling


@dataclass(frozen=True)
class Draft:
    """A token tree proposed for every row.

    Attributes:
        tokens: int64 [B, N], drafted target ids.
        parents: int64 [B, N], index of the parent node; ``tree.ROOT`` (-1) hangs off the last committed
            token, ``tree.PAD`` (-2) marks a slot without a node. A parent stands before its children.
        base: int64 [B], committed length the draft was made for, by which a stale reply is recognised.
        laws: float [B, N, V], the law each token was really drawn from, given its earlier siblings.
            ``None`` is the point mass on the token: always lossless, whatever the drafter did.
        fanout: the most children that a node has, where it is known without looking: 1 promises chains, with
            padding behind them only. ``None``: look.
    """

    tokens: Tensor
    parents: Tensor
    base: Tensor
    laws: Tensor | None = None
    fanout: int | None = None

    @classmethod
    def empty(cls, base_B: Tensor) -> Draft:
        """A draft without nodes: verifying it is plain decoding (and, in round zero, prefill)."""
        none_BN = base_B.new_empty((base_B.shape[0], 0))
        return cls(none_BN, none_BN, base_B, fanout=1)

    @classmethod
    def chain(cls, tokens_BN: Tensor, base_B: Tensor, counts_B: Tensor, laws_BNV: Tensor | None = None) -> Draft:
        """A chain of the first ``counts_B`` tokens of each row."""
        index_N = torch.arange(tokens_BN.shape[1], device=tokens_BN.device)
        parents_BN = torch.where(index_N < counts_B[:, None], index_N - 1, tree.PAD)
        return cls(tokens_BN, parents_BN, base_B, laws_BNV, fanout=1)

    def padded(self, size: int) -> Draft:
        """The draft with padding up to ``size`` nodes per row."""
        more = size - self.size
        if more <= 0:
            return self
        laws_BNV = None if self.laws is None else pad(self.laws, (0, 0, 0, more))
        tokens_BN, parents_BN = pad(self.tokens, (0, more)), pad(self.parents, (0, more), value=tree.PAD)
        return Draft(tokens_BN, parents_BN, self.base, laws_BNV, self.fanout)

    def of_depths(self, depths_BN: Tensor) -> Draft:
        """The draft itself, whose ``depths`` whoever made it knows already."""
        self.__dict__["depths"] = depths_BN
        return self

    @property
    def size(self) -> int:
        """N, nodes per row, padding included."""
        return self.tokens.shape[1]

    @cached_property
    def ancestors(self) -> Tensor:
        """bool [B, N, N]: node m is node n or one of its ancestors."""
        return tree.ancestors(self.parents, self.fanout)

    @cached_property
    def depths(self) -> Tensor:
        """int64 [B, N]: 1 for a child of the last committed token, 0 for padding."""
        return self.ancestors.sum(-1) * (self.parents != tree.PAD)

    @cached_property
    def children(self) -> Tensor:
        """int64 [B, M, R]: the children of the last committed token (row 0) and of each node, -1 where none."""
        return tree.children(self.parents, self.fanout)

    @cached_property
    def is_chain(self) -> bool:
        """Whether every row is a chain, so that accepted nodes already lie in order."""
        index_N = torch.arange(self.size, device=self.parents.device)
        return bool(((self.parents == index_N - 1) | (self.parents == tree.PAD)).all())

    @cached_property
    def positions(self) -> Tensor:
        """int64 [B, M]: position of the token that each row of the target law decides."""
        return self.base[:, None] + pad(self.depths, (1, 0))


@dataclass(frozen=True)
class Verdict:
    """What an acceptance rule decided.

    Attributes:
        path: int64 [B, D], node indices of the accepted path, -1 beyond its end.
        accepted: int64 [B], accepted nodes.
        tokens: int64 [B], the correction (or bonus) token that follows the path.
    """

    path: Tensor
    accepted: Tensor
    tokens: Tensor

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.path, self.accepted, self.tokens

    @property
    def end(self) -> Tensor:
        """int64 [B]: the last accepted node, ``tree.ROOT`` where none was."""
        if self.path.shape[1] == 0:
            return torch.full_like(self.accepted, tree.ROOT)
        last_B = self.path.gather(1, (self.accepted - 1).clamp(min=0)[:, None])[:, 0]
        return torch.where(self.accepted > 0, last_B, tree.ROOT)


@dataclass(frozen=True)
class Tap:
    """A reading point in the target's forward: the hidden state after ``layer`` layers, before the final norm.

    ``Tap(0)`` is the embedding and ``Tap(L)`` the output of the last layer. Hugging Face's ``hidden_states``
    tuple agrees for every index but its last entry, which is taken after the final norm.
    """

    layer: int


@dataclass(frozen=True)
class Top:
    """The target's ``count`` likeliest next tokens at every place of a window, accepted or not.

    Raises:
        ValueError: a count below 1.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"the count of likeliest tokens must be at least 1, not {self.count}")


Want = Tap | Top


@dataclass(frozen=True)
class Tops:
    """How the target would go on from every place of a window that it has verified.

    Attributes:
        tokens: int64 [B, M], the token that was committed last before the round, then the window's nodes.
        parents: int64 [B, N], as in ``Draft``: at ``tree.PAD`` there is nothing to be learnt.
        successors: int64 [B, M, k], the tokens of the highest logits, the highest first; sampling has no part in
            it. k is the most that anybody wanted.
    """

    tokens: Tensor
    parents: Tensor
    successors: Tensor


@dataclass(frozen=True)
class Advice:
    """What the target computed in a round. Advice may be dropped without harm.

    Attributes:
        states: per tap, float [B, K, hidden], along the newly committed tokens.
        positions: int64 [B, K], position of the token each state belongs to, -1 for padding; K = 0 without taps.
        tops: likeliest tokens all over the window; None if they are not wanted.
    """

    states: Mapping[Tap, Tensor]
    positions: Tensor
    tops: Tops | None = None

    @classmethod
    def joined(cls, rounds: Iterable[Advice | None]) -> Advice | None:
        """That of several rounds as one, if there is any: states side by side, of the windows the last one."""
        told = [advice for advice in rounds if advice is not None]
        if len(told) < 2:
            return told[0] if told else None
        states = {tap: torch.cat([advice.states[tap] for advice in told], 1) for tap in told[0].states}
        return cls(states, torch.cat([advice.positions for advice in told], 1), told[-1].tops)


@dataclass(frozen=True)
class Context:
    """What a drafter sees: committed tokens (or a hypothesis of them), and how much may still be committed.

    Attributes:
        tokens: int64 [B, S], right-padded.
        lengths: int64 [B].
        room: int64 [B], tokens that may still be committed; 0 for a finished row. A draft deeper than
            ``room - 1`` is wasted, since every round commits one token of the target's own.
        sampling: the law the target decodes under.
        advice: what the drafter wants to see of the target, where there is something it was not given yet.
        static: whether shapes must not depend on the rows, so that the draft can be replayed for others.
        others: the most nodes that a draft had which was verified in place of this drafter's own; 0 where its own
            always are. Where shapes are static, so many tokens more may be new to it.
        reads: the most tokens that are new to a model which has not read the rows, where shapes are static in
            that draft as well; 0: they may depend on the rows there.
    """

    tokens: Tensor
    lengths: Tensor
    room: Tensor
    sampling: Sampling
    advice: Advice | None = None
    static: bool = False
    others: int = 0
    reads: int = 0

    @property
    def depth(self) -> int | None:
        """The deepest draft that can still be committed whole; None where nobody may look."""
        return None if self.static else int(self.room.max()) - 1

    def row(self, index: int) -> list[int]:
        """Committed tokens of one row, as Python integers."""
        return self.tokens[index, : int(self.lengths[index])].tolist()
