"""Draft models that read states of the target beside tokens, and go on with states of their own (EAGLE).

B rows, S token slots, W tokens of one forward, N nodes, K tapped tokens, X hidden size, V target vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from drafters.fitting import same_target
from drafters.state_drafter import StateHead, StateModel
from specdec import tree
from specdec.kernels import here
from specdec.runtime.feed import Feed, Hanging
from specdec.runtime.huggingface import Network
from specdec.runtime.model import Scores
from specdec.runtime.readout import Glance
from specdec.types import Advice, Tap


class PairReader(Protocol):
    """Reads pairs: a token, and a feature of what lies before it."""

    def read(
        self, tokens_BW: Tensor, features_BWX: Tensor, positions_BW: Tensor, target: Network, **attention: Any
    ) -> Tensor:
        """[B, W, X]: what it makes of each pair, which is the feature of whatever follows."""
        ...

    def logits(self, own_BWX: Tensor, target: Network) -> Tensor:
        """[B, W, V] over the target's ids, from what it made; -inf for those it does not know."""
        ...


class FeatureHead(StateHead, PairReader, Protocol):
    """A module that reads pairs. One that can do so in its target's fused kernels as well also has
    ``fused(target)``: what does, None where that target has none or they do not fit."""


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A head and what it borrows of its target, as a cached model sees it.

    Attributes:
        head, target: the two.
        fused: reads in place of the head where the attention is told what is seen in few words; None: the head.
    """

    head: FeatureHead
    target: Network
    fused: PairReader | None = None
    max_positions = None  # its positions are relative

    @property
    def brief(self) -> bool:
        """See ``Network``: its attention is the target's."""
        return self.target.brief

    @property
    def module(self) -> nn.Module:
        """The head."""
        return cast(nn.Module, self.head)

    @property
    def depth(self) -> int:
        """Layers."""
        return self.head.depth

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.target.vocab_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.target.device


class FeatureModel(StateModel):
    """A head with a cache and with the features that it read and made.

    Slot i of the cache holds the pair of token i + 1 and the feature of token i: the first token has none before
    it, and is never read. Of a committed token the feature is the target's; a node of a draft goes on with what
    the head itself made of the node above. What was drafted is therefore read again once it is committed. Where a
    state of the target never came, the feature is zero.
    """

    remembers = False
    in_turn = True  # whether a node needs what was made of the one above it

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__(cast(Network, network))
        self._head = network
        self._given = torch.zeros(0, 0, 0)  # [B, slots + 1, X], by position of the token
        self._made = torch.zeros(0, 0, 0)  # [B, slots + 1, X], by slot
        self._told = False  # whether a state of the target has come

    def serves(self, target: Network) -> bool:
        """Whether it borrows of a target with these very weights."""
        return same_target(self._head.target, target)

    @property
    def steady(self) -> bool:
        """See ``CachedModel``."""
        return self._head.fused is not None

    def begin(self, rows: int, slots: int, longest: int | None = None, stay: bool = False) -> None:
        """Forget everything; see ``CachedModel.begin``."""
        super().begin(rows, slots, longest, stay)
        self._fit()
        self._given.zero_()
        self._made.zero_()
        self._told = False

    def see(self, advice: Advice | None) -> None:
        """Take the target's states of newly committed tokens; pairs that were read without them are read again."""
        if advice is None:
            return
        self._told = True
        feature_BKX = self._head.head.feature(advice.states, self._head.target)
        put(self._given, advice.positions, feature_BKX, self.memory.lengths)

    def caught_up(self) -> None:
        """See ``CachedModel.caught_up``: states of the target came with the rows."""
        super().caught_up()
        self._told = True

    def advance(
        self,
        tokens_BS: Tensor,
        lengths_B: Tensor,
        nodes: tuple[Tensor, Tensor] | None = None,
        taps: tuple[Tap, ...] = (),
        behind: int | None = None,
        chain: bool = False,
        glance: Glance | None = None,
        reads: int = 0,
    ) -> Scores:
        """See ``CachedModel.advance``."""
        row_BT, pairs_B = tokens_BS[:, 1:], paired(lengths_B)
        if not self.in_turn:
            return self._read(row_BT, pairs_B, nodes, taps, behind, chain, glance, reads)
        scores = self._read(row_BT, pairs_B, None, taps, behind, True, glance, reads)
        logits = [scores.logits]
        if nodes is not None:
            size = nodes[0].shape[1]
            logits += [self.grow(nodes[0][:, n : n + 1], nodes[1][:, n : n + 1], chain) for n in range(size)]
        return Scores(torch.cat(logits, 1))

    def _read(self, *arguments: Any) -> Scores:
        scores = super().advance(*arguments)
        # Else what the next forward reads would not be the whole prompt, of which no state has come yet.
        self.memory.follows = self._told
        return scores

    def hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        """See ``CachedModel.hang``."""
        super().hang(paired(lengths_B), nodes, chain, static)

    def remember(self) -> None:
        """Nothing: a committed token's feature is the target's."""

    def _forward(self, what: Feed, keep: int, taps: tuple[Tap, ...] = (), glance: Glance | None = None) -> Scores:
        self.memory.cache.grow(what.span)
        window, network = what.window(self.memory.cache), self._head
        feature_BWX = self._features(what)
        reader = network.fused if network.fused is not None and window.sight is not None else network.head
        own_BWX = reader.read(what.tokens, feature_BWX, what.positions, network.target, window=window)
        if self.in_turn:
            put(self._made, what.slots, own_BWX)
        return Scores(reader.logits(own_BWX[:, -keep:], network.target))

    def _features(self, what: Feed) -> Tensor:
        """[B, W, X]: the target's behind committed tokens, others behind nodes."""
        hanging: Any = self._hanging
        self._fit()
        if self.in_turn and here(what.slots):
            from specdec.kernels.states import features

            return features(self._given, self._made, what.slots, hanging.lengths, hanging.parents)
        slot_BW = what.slots.clamp(min=0)  # of padding it does not matter
        given_BWX = along(self._given, slot_BW)
        if hanging.size == 0:
            return given_BWX
        node_BW = slot_BW - hanging.lengths[:, None]
        drafted_BWX = self._drafted(node_BW.clamp(0, hanging.size - 1), what.positions, hanging)
        return torch.where((node_BW >= 0)[..., None], drafted_BWX, given_BWX)

    def _drafted(self, node_BW: Tensor, position_BW: Tensor, hanging: Hanging) -> Tensor:
        """[B, W, X]: the features that nodes at positions are read with, what the head made of the node above."""
        above_BW = hanging.parents.gather(1, node_BW).clamp(min=tree.ROOT)
        return along(self._made, (hanging.lengths[:, None] + above_BW).clamp(min=0))

    def _fit(self) -> None:
        """Room for every slot of the cache."""
        rows, slots = self.memory.tokens.shape[0], self.memory.cache.slots + 1
        for name in ("_given", "_made"):
            held: Tensor = getattr(self, name)
            if held.shape[0] != rows:
                setattr(self, name, self._head.target.head_weight.new_zeros(rows, slots, self._head.head.width))
            elif held.shape[1] < slots:
                setattr(self, name, pad(held, (0, 0, 0, slots - held.shape[1])))


def paired(lengths_B: Tensor) -> Tensor:
    """int64 [B], pairs of rows with so many tokens; a single token is taken to have one, which is read again."""
    return (lengths_B - 1).clamp(min=1)


def along(states_BSX: Tensor, place_BW: Tensor) -> Tensor:
    """[B, W, X] of [B, S, X], in one gather."""
    return states_BSX.gather(1, place_BW[..., None].expand(-1, -1, states_BSX.shape[2]))


def put(table_BSX: Tensor, place_BK: Tensor, state_BKX: Tensor, lowest_B: Tensor | None = None) -> None:
    """Write states to places of a table, -1 is none; ``lowest_B`` is lowered to the lowest place of each row."""
    if here(table_BSX):
        from specdec.kernels import states

        states.put(table_BSX, place_BK, state_BKX, lowest_B)
        return
    row_B1 = torch.arange(len(place_BK), device=place_BK.device)[:, None]
    # At -1 lies the last place, where a cache keeps what padding writes.
    table_BSX[row_B1, place_BK] = torch.where(place_BK[..., None] >= 0, state_BKX, 0).to(table_BSX.dtype)
    if lowest_B is not None:
        place_BK = torch.where(place_BK >= 0, place_BK, table_BSX.shape[1])
        lowest_B.copy_(torch.minimum(lowest_B, place_BK.amin(1)))
