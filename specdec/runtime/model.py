"""A causal language model with a cache that follows whatever tokens it is asked about.

B rows, S token slots, N draft nodes, M = N + 1 (the last committed token, then the nodes), W tokens of one
forward, D depth slots of an accepted path, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.runtime.cache import KVCache
from specdec.runtime.feed import Feed, Hanging, feed
from specdec.runtime.huggingface import Network
from specdec.types import Tap


@dataclass
class Memory:
    """A cache, and the tokens it holds: of each row of ``tokens`` [B, S] the first ``lengths`` [B]."""

    cache: KVCache
    tokens: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, rows: int, slots: int, device: torch.device) -> Memory:
        nothing_BS = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return cls(KVCache(rows, slots), nothing_BS, nothing_BS.sum(1))

    def common(self, tokens_BS: Tensor, lengths_B: Tensor) -> Tensor:
        """int64 [B]: how much of the given rows is held."""
        width = min(tokens_BS.shape[1], self.tokens.shape[1])
        limit_B = torch.minimum(self.lengths, lengths_B)
        same_BS = self.tokens[:, :width] == tokens_BS[:, :width]
        same_BS &= torch.arange(width, device=tokens_BS.device) < limit_B[:, None]
        return same_BS.cumprod(1).sum(1)


@dataclass(frozen=True)
class Scores:
    """Answer of a forward.

    Attributes:
        logits: [B, M, V], after the last committed token, then after each node.
        states: per tap, [B, W, hidden].
        positions: int64 [B, W], position of each tapped token, -1 for padding.
    """

    logits: Tensor
    states: dict[Tap, Tensor] = field(default_factory=dict)
    positions: Tensor | None = None


class CachedModel:
    """A network and its cache.

    ``advance`` runs over the committed tokens that the cache lacks and over a draft tree, in one forward;
    ``grow`` adds nodes to that tree; ``keep`` makes accepted nodes committed tokens. There is no state to get
    out of step: a cache that holds other tokens than the committed ones rolls back to what is common.

    Args:
        network: the model.
        memory: the cache of another model to read and scribble on without ever moving its end; for the early
            exit of that model, whose layers are the same. None for a cache of its own.
    """

    def __init__(self, network: Network, memory: Memory | None = None) -> None:
        self.network = network
        self._owns = memory is None
        self.memory = memory or Memory.empty(0, 0, network.device)
        self._hanging: Hanging | None = None

    @property
    def vocab_size(self) -> int:
        """V, width of the logits."""
        return self.network.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the network's inputs live."""
        return self.network.device

    def begin(self, rows: int, slots: int) -> None:
        """Forget everything. ``slots`` is the longest a row may get; draft trees make the cache grow beyond it.

        Raises:
            ValueError: the model has fewer positions.
        """
        limit = self.network.max_positions
        if limit is not None and slots > limit:
            raise ValueError(
                f"a row may reach {slots} tokens (prompt and new tokens), but the model has {limit} positions: "
                "shorten the prompt or lower max_new_tokens"
            )
        if self._owns:
            fresh = Memory.empty(rows, slots, self.device)
            # In place: the early exits of this model look at the same memory.
            self.memory.cache, self.memory.tokens, self.memory.lengths = (
                fresh.cache,
                fresh.tokens,
                fresh.lengths,
            )

    def early_exit(self, layers: int) -> CachedModel:
        """The first ``layers`` layers with this model's own norm and head, on this model's cache."""
        return CachedModel(self.network.early_exit(layers), self.memory)

    def advance(
        self,
        tokens_BS: Tensor,
        lengths_B: Tensor,
        nodes: tuple[Tensor, Tensor] | None = None,
        taps: tuple[Tap, ...] = (),
    ) -> Scores:
        """Run over the first ``lengths_B`` (1 or more) of each row, and a draft tree (tokens, parents) [B, N]."""
        nodes_BN, parents_BN = nodes or (tokens_BS[:, :0], tokens_BS[:, :0])
        self._hanging = Hanging(lengths_B, nodes_BN, parents_BN)
        # What the forward overwrites is no longer held, whatever becomes of the forward.
        self.memory.lengths = self.memory.common(tokens_BS, lengths_B)
        # The last committed token is always fed: its logits are wanted.
        what = feed(tokens_BS, torch.minimum(self.memory.lengths, lengths_B - 1), self._hanging)
        scores = self._forward(what, nodes_BN.shape[1] + 1, taps)
        if self._owns:
            self.memory.tokens, self.memory.lengths = tokens_BS, lengths_B
        return scores

    def grow(self, tokens_BW: Tensor, parents_BW: Tensor) -> Tensor:
        """Add nodes to the tree of the last ``advance``; parents count from its first node. Logits [B, W, V]."""
        if self._hanging is None:
            raise RuntimeError("grow comes after advance")
        fed, self._hanging = self._hanging.size, self._hanging.more(tokens_BW, parents_BW)
        what = feed(self.memory.tokens[:, :0], self._hanging.lengths, self._hanging, fed)
        return self._forward(what, tokens_BW.shape[1]).logits

    def keep(self, path_BD: Tensor, accepted_B: Tensor, tokens_BS: Tensor, lengths_B: Tensor) -> None:
        """Make accepted nodes committed tokens; the first ``lengths_B`` of ``tokens_BS`` are the rows now."""
        if self._hanging is None:
            raise RuntimeError("keep comes after advance")
        before_B = self._hanging.lengths
        depth_D = torch.arange(path_BD.shape[1], device=path_BD.device)
        moved_BD = (path_BD != depth_D) & (depth_D < accepted_B[:, None])
        if bool(moved_BD.any()):
            source_BD = torch.where(moved_BD, before_B[:, None] + path_BD, self.memory.cache.trash)
            target_BD = torch.where(moved_BD, before_B[:, None] + depth_D, self.memory.cache.trash)
            self.memory.cache.move(source_BD, target_BD)
        self.memory.tokens = tokens_BS
        self.memory.lengths = torch.minimum(before_B + accepted_B, lengths_B)

    def _forward(self, what: Feed, keep: int, taps: tuple[Tap, ...] = ()) -> Scores:
        self.memory.cache.grow(what.span)
        window = what.window(self.memory.cache)
        logits, states = self.network(what.tokens, what.positions, window, keep, taps)
        if len(window.written) != self.network.depth:
            raise ValueError(
                f"{type(self.network.module).__name__} has layers that do not use transformers' attention "
                "interface, which the cache needs: choose another model"
            )
        return Scores(logits, states, torch.where(what.slots >= 0, what.positions, -1) if taps else None)
