"""Drafting with a model that guesses ahead of itself, and verifies its guesses (arXiv 2402.11131).

B rows, X roots per row, K places of a root that one forward reads, E streams of a place, N drafted tokens,
V target vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from drafters.roots import Roots, fit
from drafters.stream_model import StreamModel
from specdec.noise import Noise
from specdec.types import Draft


@dataclass(frozen=True)
class Pace:
    """How much is drafted, and how fast.

    Attributes:
        length: most tokens.
        steps: most forwards, that of the root included.
        streams: E.
    """

    length: int
    steps: int
    streams: int

    @property
    def most(self) -> int:
        """N: the root's forward yields a token, each other one up to 1 + E."""
        return min(self.length, 1 + (self.steps - 1) * (1 + self.streams))

    @property
    def last(self) -> int:
        """The last forward, where that of the root is 0; behind forward n there are more than n tokens."""
        return min(self.steps, self.length) - 1

    def guesses(self, step: int) -> int:
        """Guesses that a forward verifies: so many as may still be drafted, and one less."""
        return max(0, min(self.streams, self.length - step - 1)) if step <= self.last else 0


@dataclass(frozen=True)
class Heard:
    """What a forward said at the newest token of each root, and at the guesses behind it.

    Attributes:
        logits: [B, X, K, V], of the main stream.
        guesses: int64 [B, X, K - 1].
        ahead: [B, X, K, E, V], of the streams.
        nodes: int64 [B, X, K], where the places stand in the model's tree.
        seen: bool [B, X, K, V], which tokens occurred; None where nobody asks.
    """

    logits: Tensor
    guesses: Tensor
    ahead: Tensor
    nodes: Tensor
    seen: Tensor | None

    @classmethod
    def of(cls, roots: Roots, ahead_BXEV: Tensor | None = None) -> Heard:
        """At roots, of whose streams nothing may be known."""
        logits_BXKV, seen_BXV = roots.logits[:, :, None], roots.seen
        ahead_BXKEV = logits_BXKV[..., None, :][..., :0, :] if ahead_BXEV is None else ahead_BXEV[:, :, None]
        seen_BXKV = None if seen_BXV is None else seen_BXV[:, :, None]
        return cls(logits_BXKV, roots.nodes[..., None][..., :0], ahead_BXKEV, roots.nodes[..., None], seen_BXKV)


@dataclass(frozen=True)
class Drafted:
    """What was drafted so far, with a slot at the end for what was not.

    Attributes:
        tokens: int64 [B, X, N + 1].
        laws: [B, X, N + 1, V], None where they are not shipped.
        counts: int64 [B, X], which may exceed N.
    """

    tokens: Tensor
    laws: Tensor | None
    counts: Tensor

    @property
    def size(self) -> int:
        """N."""
        return self.tokens.shape[2] - 1

    def more(self, drawn_BXK: Tensor, law_BXKV: Tensor | None, right_BXK: Tensor) -> Drafted:
        """With the tokens drawn at places that are right, which are the first ones of each root."""
        place_BXK = self.counts[..., None] + torch.arange(drawn_BXK.shape[2], device=drawn_BXK.device)
        place_BXK = torch.where(right_BXK, place_BXK, self.size).clamp(max=self.size)
        laws = self.laws
        if laws is not None and law_BXKV is not None:
            laws = laws.scatter(2, place_BXK[..., None].expand_as(law_BXKV), law_BXKV.to(laws.dtype))
        return Drafted(self.tokens.scatter(2, place_BXK, drawn_BXK), laws, self.counts + right_BXK.sum(-1))

    def draft(self, base_B: Tensor) -> Draft:
        """As chains, one a root."""
        tokens, laws = self.tokens[..., :-1].flatten(0, 1), self.laws
        counts = self.counts.clamp(max=self.size).flatten()
        return Draft.chain(tokens, base_B, counts, None if laws is None else laws[:, :, :-1].flatten(0, 1))


def streamed(
    model: StreamModel,
    roots: Roots,
    ahead_BXEV: Tensor | None,
    noise: Noise,
    pace: Pace,
    vocabulary: int,
    static: bool,
) -> Draft:
    """A chain behind every root, rows b * X + x: token by token what one-token forwards would draft.

    Every forward reads the newest token and the guesses behind it. At each place the main stream's token is drawn;
    a guess is right if it is the one drawn before it. What was drawn at right places is drafted, so that nothing
    is left out for its value; the streams of the last one guess on, with the noise that will be drawn with.

    Args:
        model: in whose tree the roots are.
        roots, ahead_BXEV: what it said there, the streams too if they were asked.
        static: whether forwards go on where all is drafted, since nobody may look.
    """
    drafter = _Drawing(roots, noise)
    heard, drafted, fed = Heard.of(roots, ahead_BXEV), drafter.blank(pace.most), roots.fed
    for step in range(pace.last + 1):
        drawn_BXK, law_BXKV = drafter.draw(heard.logits, drafted.counts, heard.seen)
        told_BXK = pad((heard.guesses == drawn_BXK[..., :-1]).long(), (1, 0), value=1)
        right_BXK = told_BXK.cumprod(-1).bool()
        drafted = drafted.more(drawn_BXK, law_BXKV, right_BXK)
        if step == pace.last or not (static or bool((drafted.counts < pace.most).any())):
            break
        heard = _at(heard, right_BXK.sum(-1) - 1)
        newest_BX1 = drawn_BXK.gather(2, right_BXK.sum(-1, keepdim=True) - 1)
        seen_BX1V = heard.seen
        if seen_BX1V is not None:
            seen_BX1V = seen_BX1V.scatter(3, newest_BX1[..., None], True)
        count = min(pace.guesses(step + 1), heard.ahead.shape[3])
        guesses_BXG = newest_BX1[..., :0]
        if count:
            guesses_BXG = drafter.draw(heard.ahead[:, :, 0, :count], drafted.counts, seen_BX1V)[0]
        tokens_BXK = torch.cat([newest_BX1, guesses_BXG], 2)
        said = _read(model, tokens_BXK, heard.nodes, fed, pace.guesses(step + 2), vocabulary)
        heard = replace(said, seen=_seen(seen_BX1V, guesses_BXG))
        fed += said.logits[0, :, :, 0].numel() * (1 + said.ahead.shape[3])
    model.remember()
    return drafted.draft(roots.lengths.flatten())


@dataclass(frozen=True)
class _Drawing:
    """How tokens are drawn, or chosen."""

    roots: Roots
    noise: Noise

    def blank(self, size: int) -> Drafted:
        """Nothing, with room for so many tokens a root."""
        lengths_BX, logits_BXV = self.roots.lengths, self.roots.logits
        tokens_BXN = lengths_BX.new_zeros(*lengths_BX.shape, size + 1)
        ships = not (self.roots.sampling.greedy or self.noise.coupled)
        laws = (
            logits_BXV.new_zeros(*tokens_BXN.shape, logits_BXV.shape[-1], dtype=torch.float32) if ships else None
        )
        return Drafted(tokens_BXN, laws, torch.zeros_like(lengths_BX))

    def draw(self, logits: Tensor, counts_BX: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, X, K] at depths from ``counts_BX`` on, and the laws [B, X, K, V] they were drawn from."""
        if seen is not None:
            seen = seen.expand(logits.shape)
        if self.roots.sampling.greedy:
            return self.roots.sampling.scores(logits, seen).argmax(-1), None
        depth_BXK = counts_BX[..., None] + torch.arange(logits.shape[2], device=logits.device)
        law_BXKV = self.roots.sampling.law(logits, seen)
        lengths_BXK = self.roots.lengths[..., None].expand_as(depth_BXK)
        return self.noise.propose(law_BXKV, lengths_BXK, depth_BXK), law_BXKV


def _at(heard: Heard, place_BX: Tensor) -> Heard:
    """What was said at one place of each root."""

    def one(values: Tensor) -> Tensor:
        index = place_BX.reshape(*place_BX.shape, *[1] * (values.dim() - 2))
        return values.gather(2, index.expand(-1, -1, 1, *values.shape[3:]))

    seen = None if heard.seen is None else one(heard.seen)
    return Heard(one(heard.logits), heard.guesses[..., :0], one(heard.ahead), one(heard.nodes), seen)


def _read(
    model: StreamModel, tokens_BXK: Tensor, above_BX1: Tensor, fed: int, streams: int, vocabulary: int
) -> Heard:
    """Read tokens of every root, one behind the other. All first ones lie before all second ones."""
    rows, roots, places = tokens_BXK.shape
    node_BY = fed + torch.arange(places * roots, device=tokens_BXK.device).expand(rows, -1)
    parents_BY = torch.cat([above_BX1[..., 0], node_BY[:, : (places - 1) * roots]], 1)
    said = fit(model.read(tokens_BXK.transpose(1, 2).flatten(1), parents_BY, streams), vocabulary)
    said_BFXKV = said.unflatten(2, (places, roots)).transpose(2, 3)
    nodes_BXK = node_BY.unflatten(1, (places, roots)).transpose(1, 2)
    ahead_BXKEV = said_BFXKV[:, 1:].movedim(1, 3)
    return Heard(said_BFXKV[:, 0], tokens_BXK[..., 1:], ahead_BXKEV, nodes_BXK, None)


def _seen(seen_BX1V: Tensor | None, guesses_BXG: Tensor) -> Tensor | None:
    """bool [B, X, K, V]: what occurred up to each place, the guesses on the way included."""
    if seen_BX1V is None:
        return None
    seen = [seen_BX1V]
    for guess_BX in guesses_BXG.unbind(2):
        seen.append(seen[-1].scatter(3, guess_BX[..., None, None], True))
    return torch.cat(seen, 2)
