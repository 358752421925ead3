"""Drafting with a model that guesses ahead of itself, and verifies its guesses (arXiv 2402.11131).

B rows, X roots per row, K places of a root that one forward reads, C candidates for a guess, E streams of a place,
N drafted tokens, V target vocabulary. Of the K = 1 + C * G places the first is the newest token, the others are
C chains of G guesses: all first guesses, then all second ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from drafters.pace import Pace
from drafters.roots import Roots, fit
from drafters.stream_model import StreamModel
from specdec.noise import Noise
from specdec.types import Draft


def above(guesses: int, candidates: int, device: torch.device) -> Tensor:
    """int64 [K - 1]: for each of so many guesses the place that it stands behind."""
    return (torch.arange(1, 1 + guesses, device=device) - candidates).clamp(min=0)


@dataclass(frozen=True)
class Heard:
    """What a forward said at the newest token of each root, and at the guesses behind it.

    Attributes:
        logits: [B, X, K, V], of the main stream.
        guesses: int64 [B, X, K - 1].
        ahead: [B, X, K, E, V], of the streams.
        nodes: int64 [B, X, K], where the places stand in the model's tree.
        seen: bool [B, X, K, V], which tokens occurred; None where nobody asks.
        candidates: C.
    """

    logits: Tensor
    guesses: Tensor
    ahead: Tensor
    nodes: Tensor
    seen: Tensor | None
    candidates: int = 1

    @property
    def depths(self) -> Tensor:
        """int64 [K]: guesses on the way to a place, its own included."""
        place_K = torch.arange(1 + self.guesses.shape[2], device=self.guesses.device)
        return (place_K + self.candidates - 1) // self.candidates

    def right(self, drawn_BXK: Tensor) -> Tensor:
        """bool [B, X, K]: whether all tokens on the way to a place are those drawn. Of a depth one is, at most."""
        above_G = above(self.guesses.shape[2], self.candidates, drawn_BXK.device)
        told_BXGC = (self.guesses == drawn_BXK[..., above_G]).unflatten(2, (-1, self.candidates))
        return pad(told_BXGC.long().cumprod(2).flatten(2), (1, 0), value=1).bool()

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

    def more(self, drawn_BXK: Tensor, law_BXKV: Tensor | None, right_BXK: Tensor, depth_K: Tensor) -> Drafted:
        """With the tokens drawn at places that are right, at most one of a depth."""
        place_BXK = self.counts[..., None] + depth_K
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
        depth_K = heard.depths
        drawn_BXK, law_BXKV = drafter.draw(heard.logits, drafted.counts[..., None] + depth_K, heard.seen)
        right_BXK = heard.right(drawn_BXK)
        drafted = drafted.more(drawn_BXK, law_BXKV, right_BXK, depth_K)
        if step == pace.last or not (static or bool((drafted.counts < pace.most).any())):
            break
        last_BX = (right_BXK * (1 + depth_K)).argmax(-1)
        newest_BX1, heard = drawn_BXK.gather(2, last_BX[..., None]), _at(heard, last_BX)
        seen_BX1V = heard.seen
        if seen_BX1V is not None:
            seen_BX1V = seen_BX1V.scatter(3, newest_BX1[..., None], True)
        guesses_BXG = drafter.guess(
            heard.ahead[:, :, 0, : pace.guesses(step + 1)], drafted.counts, seen_BX1V, pace
        )
        tokens_BXK = torch.cat([newest_BX1, guesses_BXG], 2)
        said = _read(model, tokens_BXK, heard.nodes, fed, pace, step + 2, vocabulary)
        heard = replace(said, seen=_seen(seen_BX1V, guesses_BXG, pace.candidates))
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

    def draw(self, logits: Tensor, depth_BXK: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, X, K] at depths of the draft, and the laws [B, X, K, V] they were drawn from."""
        if seen is not None:
            seen = seen.expand(logits.shape)
        if self.roots.sampling.greedy:
            return self.roots.sampling.scores(logits, seen).argmax(-1), None
        law_BXKV = self.roots.sampling.law(logits, seen)
        lengths_BXK = self.roots.lengths[..., None].expand_as(depth_BXK)
        return self.noise.propose(law_BXKV, lengths_BXK, depth_BXK), law_BXKV

    def guess(self, ahead_BXEV: Tensor, counts_BX: Tensor, seen: Tensor | None, pace: Pace) -> Tensor:
        """int64 [B, X, K - 1]: what streams expect, the first one's other likeliest tokens beside its own."""
        count, others = ahead_BXEV.shape[2], pace.candidates - 1
        if not count:
            return counts_BX[..., None][..., :0]
        depth_BXE = counts_BX[..., None] + torch.arange(count, device=counts_BX.device)
        drawn_BXE, _ = self.draw(ahead_BXEV, depth_BXE, seen)
        if not others:
            return drawn_BXE
        first_BXV, first_BX1 = ahead_BXEV[:, :, 0], drawn_BXE[..., :1]
        other_BXC = first_BXV.scatter(2, first_BX1, -torch.inf).topk(others).indices
        behind_BXG = drawn_BXE[..., 1:].repeat_interleave(1 + others, 2)
        return torch.cat([first_BX1, other_BXC, behind_BXG], 2)


def _at(heard: Heard, place_BX: Tensor) -> Heard:
    """What was said at one place of each root."""

    def one(values: Tensor) -> Tensor:
        index = place_BX.reshape(*place_BX.shape, *[1] * (values.dim() - 2))
        return values.gather(2, index.expand(-1, -1, 1, *values.shape[3:]))

    seen = None if heard.seen is None else one(heard.seen)
    return Heard(
        one(heard.logits), heard.guesses[..., :0], one(heard.ahead), one(heard.nodes), seen, heard.candidates
    )


def _read(
    model: StreamModel, tokens_BXK: Tensor, above_BX1: Tensor, fed: int, pace: Pace, step: int, vocabulary: int
) -> Heard:
    """Read tokens of every root, all first ones before all second ones, with the streams that ``step`` asks."""
    rows, roots, places = tokens_BXK.shape
    node_BY = fed + torch.arange(places * roots, device=tokens_BXK.device).expand(rows, -1)
    nodes_BXK = node_BY.unflatten(1, (places, roots)).transpose(1, 2)
    above_G = above(places - 1, pace.candidates, tokens_BXK.device)
    parents_BXK = torch.cat([above_BX1, nodes_BXK[..., above_G]], 2)
    tokens_BY, parents_BY = (part.transpose(1, 2).flatten(1) for part in (tokens_BXK, parents_BXK))
    said = fit(model.read(tokens_BY, parents_BY, pace.guesses(step)), vocabulary)
    said_BFXKV = said.unflatten(2, (places, roots)).transpose(2, 3)
    ahead_BXKEV = said_BFXKV[:, 1:].movedim(1, 3)
    return Heard(said_BFXKV[:, 0], tokens_BXK[..., 1:], ahead_BXKEV, nodes_BXK, None, pace.candidates)


def _seen(seen_BX1V: Tensor | None, guesses_BXG: Tensor, candidates: int) -> Tensor | None:
    """bool [B, X, K, V]: what occurred up to each place, the guesses on the way included."""
    if seen_BX1V is None:
        return None
    seen = [seen_BX1V]
    for place, guess_BX in enumerate(guesses_BXG.unbind(2), 1):
        seen.append(seen[max(0, place - candidates)].scatter(3, guess_BX[..., None, None], True))
    return torch.cat(seen, 2)
