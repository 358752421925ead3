"""A causal language model with a cache that follows whatever tokens it is asked about.

B rows, S token slots, N draft nodes, M = N + 1 (the last committed token, then the nodes), W tokens of one
forward, D depth slots of an accepted path, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from specdec.runtime.feed import Extent, Feed, Hanging, feed
from specdec.runtime.huggingface import Network
from specdec.runtime.itself import Itself
from specdec.runtime.memory import Memory
from specdec.runtime.place import Place
from specdec.runtime.readout import Glance
from specdec.types import Tap

# Slots for the nodes of draft trees, so that the cache need not grow for them.
MARGIN = 64


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

    remembers = True  # see ``remember``

    def __init__(self, network: Network, memory: Memory | None = None) -> None:
        self.network = network
        self._owns = memory is None
        self.memory = memory or Memory.empty(0, 0, network.device)
        self._hanging: Hanging | None = None
        self._static = False  # whether the last forward's shapes did not depend on them

    @property
    def vocab_size(self) -> int:
        """V, width of the logits."""
        return self.network.vocab_size

    @property
    def device(self) -> torch.device:
        """Where the network's inputs live."""
        return self.network.device

    @property
    def is_view(self) -> bool:
        """Whether the cache is another model's."""
        return not self._owns

    @property
    def follows(self) -> bool:
        """Whether the rows have been read: the shapes of a forward need not depend on them from here on."""
        return self.memory.follows

    @property
    def steady(self) -> bool:
        """Whether ``advance`` can read the rows, too, in shapes that do not depend on them."""
        return getattr(self.network, "lean", None) is not None

    def caught_up(self) -> None:
        """A recording has read the rows: Python was not there to see it."""
        self.memory.follows = True

    def begin(self, rows: int, slots: int, longest: int | None = None, stay: bool = False) -> None:
        """Forget everything. Draft trees make the cache grow beyond ``slots``.

        Args:
            rows: B.
            slots: S.
            longest: the most tokens that a row may get, if not ``slots``.
            stay: whether the cache should stay where it is if it is large enough, for what was recorded on it.

        Raises:
            ValueError: the model has fewer positions.
        """
        limit, longest = self.network.max_positions, longest or slots
        if limit is not None and longest > limit:
            raise ValueError(
                f"a row may reach {longest} tokens (prompt and new tokens), but the model has {limit} positions: "
                "shorten the prompt or lower max_new_tokens"
            )
        if self._owns:
            self.memory.follows = False
        if stay and self.memory.tokens.shape[0] == rows and self.memory.tokens.shape[1] >= slots:
            self.memory.lengths.zero_()
        elif self._owns:
            fresh = Memory.empty(rows, slots, self.device, MARGIN if stay else 0)
            # In place: the early exits of this model look at the same memory.
            self.memory.cache, self.memory.tokens, self.memory.lengths = (
                fresh.cache,
                fresh.tokens,
                fresh.lengths,
            )

    def forget(self) -> None:
        """The cache may have holes, since a forward failed: the next one looks at the rows."""
        if self._owns:
            self.memory.follows = False
            self.memory.lengths.zero_()

    def room(self, rows: int, slots: int) -> int:
        """Slots of rows that need so many, for which the cache can stay where it is."""
        held_rows, held = self.memory.tokens.shape
        return max(slots, held) if held_rows == rows else slots

    @property
    def place(self) -> Place:
        """Where the cache lies."""
        return Place(Itself(self.memory), Itself(self.memory.cache), self.memory.cache.slots)

    def early_exit(self, layers: int) -> CachedModel:
        """The first ``layers`` layers with this model's own norm and head, on this model's cache."""
        return CachedModel(self.network.early_exit(layers), self.memory)

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
        """Run over committed tokens that the cache lacks, and a draft tree.

        Args:
            tokens_BS, lengths_B: the rows; lengths are 1 or more.
            nodes: tokens and parents of the tree, [B, N] each.
            taps: states that are wanted.
            behind: the most tokens that the cache lacks once it has seen the rows: shapes then do not depend on
                them. None looks.
            chain: whether every row of the tree is known to be a chain.
            glance: takes states while the forward goes on.
            reads: in place of ``behind`` in the forward that is to read the rows; 0: one that has not, looks.
        """
        nodes = nodes or (tokens_BS[:, :0], tokens_BS[:, :0])
        # Not by what has been seen alone: a recording that was given up has told Python that the rows were read.
        waits = behind if behind is None else reads or (behind if self.follows else None)
        self._hang(lengths_B, nodes, chain, waits is not None)
        # What the forward overwrites is no longer held, whatever becomes of the forward.
        # The last committed token is always fed: its logits are wanted.
        held_B = self.memory.roll_back(tokens_BS, lengths_B)
        what = self._feed(tokens_BS, held_B, 0, waits or 0)
        scores = self._forward(what, nodes[0].shape[1] + 1, taps, glance)
        if self._owns:
            self.memory.hold(tokens_BS, lengths_B)
        self.memory.follows = True
        # Now that the prompt is read: libraries plan for every new shape, which takes tens of milliseconds.
        self._static = behind is not None
        return scores

    def hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        """Say which tree hangs off the rows, for ``grow``.

        ``advance`` says it too; where that was replayed from a recording it told Python nothing.
        """
        self._hang(lengths_B, nodes, chain, static and self.follows)

    def _hang(self, lengths_B: Tensor, nodes: tuple[Tensor, Tensor], chain: bool, static: bool) -> None:
        self._hanging = Hanging(lengths_B, *nodes, chain)
        self._static = static

    def grow(self, tokens_BW: Tensor, parents_BW: Tensor, chain: bool = False) -> Tensor:
        """Add nodes to the tree of the last ``advance``; parents count from its first node. Logits [B, W, V].

        ``chain`` says that they go on with its last node, one behind the other.
        """
        if self._hanging is None:
            raise RuntimeError("grow comes after advance")
        fed, self._hanging = self._hanging.size, self._hanging.more(tokens_BW, parents_BW, chain)
        what = self._feed(self.memory.tokens[:, :0], self._hanging.lengths, fed, 0)
        return self._forward(what, tokens_BW.shape[1]).logits

    def remember(self) -> None:
        """The tree is grown: nodes that turn out to be committed need not be read again, if they lie in place."""
        if self._owns and self._hanging is not None and self._hanging.size:
            self.memory.extend(self._hanging)

    def keep(self, path_BD: Tensor, accepted_B: Tensor, tokens_BS: Tensor, lengths_B: Tensor) -> None:
        """Make accepted nodes committed tokens; the first ``lengths_B`` of ``tokens_BS`` are the rows now."""
        if self._hanging is None:
            raise RuntimeError("keep comes after advance")
        before_B = self._hanging.lengths
        if not self._hanging.chain:
            self._move(path_BD, accepted_B)
        self.memory.hold(tokens_BS, torch.minimum(before_B + accepted_B, lengths_B))

    def _move(self, path_BD: Tensor, accepted_B: Tensor) -> None:
        """Put the keys and values of accepted nodes where those of committed tokens lie."""
        before_B1, cache = cast(Hanging, self._hanging).lengths[:, None], self.memory.cache
        depth_D = torch.arange(path_BD.shape[1], device=path_BD.device)
        moved_BD = (path_BD != depth_D) & (depth_D < accepted_B[:, None])
        if self._static or bool(moved_BD.any()):
            source_BD = torch.where(moved_BD, before_B1 + path_BD, cache.trash)
            cache.move(source_BD, torch.where(moved_BD, before_B1 + depth_D, cache.trash))

    def _feed(self, tokens_BS: Tensor, held_B: Tensor, fed: int, behind: int) -> Feed:
        hanging, extent = cast(Hanging, self._hanging), None
        if self._static:
            extent = Extent(behind, self.memory.tokens.shape[1] + hanging.size)
        return feed(tokens_BS, held_B, hanging, fed, extent, brief=self._static and self.network.brief)

    def _forward(self, what: Feed, keep: int, taps: tuple[Tap, ...] = (), glance: Glance | None = None) -> Scores:
        self.memory.cache.grow(what.span)
        window = what.window(self.memory.cache)
        logits, states = self.network(what.tokens, what.positions, window, keep, taps, glance)
        if len(window.written) != self.network.depth:
            raise ValueError(
                f"{type(self.network.module).__name__} has layers that do not use transformers' attention "
                "interface, which the cache needs: choose another model"
            )
        return Scores(logits, states, what.told if taps else None)


def models_of(part: object) -> tuple[CachedModel, ...]:
    """The models of a part of the loop: its ``models`` where it has several, else its ``model``."""
    models = getattr(part, "models", None) or (getattr(part, "model", None),)
    return tuple(model for model in models if isinstance(model, CachedModel))
