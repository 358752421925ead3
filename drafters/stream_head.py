"""An EAGLE-3 head that says several tokens at every place: speculative streaming (arXiv 2402.11131, 2503.01840).

B rows, S token slots, T pairs of a token and the feature before it, P places that count, E streams of a pair,
F = E + 1 of them and the main one, X hidden size of the head, D draft vocabulary, V target vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from drafters.checkpoint import FILES, Tensors, read
from drafters.eagle3_head import DECAY, STEPS, Eagle3Head
from drafters.trainable import FrozenTarget
from drafters.unrolled import Past, Read, at, begun, laws, mean_loss, places, seen_by
from specdec.runtime.huggingface import Network
from specdec.types import Tap

STREAM = 0.1  # weight of a stream in the loss; that of the main stream is 1 (arXiv 2402.11131)
WEIGHT = "streams.weight"
LAGS = STEPS - 1  # that a pair can be behind by and know it


class StreamHead(Eagle3Head):
    """Weights of an EAGLE-3 head with streams.

    The main stream says the token behind a pair. Stream j says the one j places further: it reads the pair with a
    learned embedding added to its feature, S_tj = M_t + P_j, stands j places further, and sees what the pair sees
    and the streams before it. All go through the same layer, norm and LM head.

    Unlike EAGLE-3's, a pair behind a drafted token does not read what was made of the pair before it, but the
    newest state of the target that there is, and a learned embedding of how many tokens came since, R_l. What the
    main stream says there then follows from tokens alone, so that guessed tokens can be verified side by side;
    behind committed tokens it says what EAGLE-3 does.

    Args:
        settings, target_hidden, ids, layers, embeds, norm_before_residual: see ``Eagle3Head``.
        streams: E.

    Raises:
        ValueError: no streams, or what ``Eagle3Head`` refuses.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        target_hidden: int,
        ids: Tensor | None = None,
        layers: Sequence[int] | None = None,
        embeds: bool = False,
        norm_before_residual: bool = False,
        streams: int = 3,
    ) -> None:
        super().__init__(settings, target_hidden, ids, layers, embeds, norm_before_residual)
        if streams < 1:
            raise ValueError(f"streams must be at least 1, not {streams}: Eagle3Head has none")
        self.streams, self.share = nn.Embedding(streams, self.width), STREAM
        nn.init.normal_(self.streams.weight, std=self.config.initializer_range)
        self.lags = nn.Embedding(LAGS, self.width)
        nn.init.zeros_(self.lags.weight)

    @classmethod
    def fresh(
        cls,
        target: FrozenTarget,
        vocabulary: int | None = None,
        layers: Sequence[int] | None = None,
        base: str | Path | None = None,
        streams: int = 3,
        frozen: bool = True,
        share: float = STREAM,
    ) -> StreamHead:
        """A head for a target, or streams for one that is trained.

        Args:
            target, vocabulary, layers, base: see ``Eagle3Head.fresh``; streams of a base are left out.
            streams: E.
            frozen: whether all of the base stays as it is, its vocabulary too, and only new streams learn.
            share: weight of a stream in the loss, that of the main stream being 1.

        Raises:
            FileNotFoundError, ValueError: see ``load`` and ``check``.
        """
        if base is None:
            made = cls.on(Eagle3Head.fresh(target, vocabulary, layers), streams)
        else:
            kind = cls if read(base, FILES).has(WEIGHT) else Eagle3Head
            held = kind.load(base)
            if not frozen:
                held.narrow(target.frequent(vocabulary, held.ids))
            made = cls.on(held, streams).to(torch.float32)
            made.check(target)
            if frozen:
                made.only_streams()
        made.share = share
        return made

    @classmethod
    def on(cls, head: Eagle3Head, streams: int = 3) -> StreamHead:
        """A copy of a trained head, with new streams."""
        residual = head.midlayer.norm_before_residual
        settings, embeds = head.config.to_dict(), head.embed_tokens is not None
        made = cls(settings, head.target_hidden, head.ids, head.layers, embeds, residual, streams)
        held = {name: weight for name, weight in head.state_dict().items() if name != WEIGHT}
        made.load_state_dict(held, strict=False)
        return made.to(head.fc.weight.device, head.fc.weight.dtype)

    @property
    def count(self) -> int:
        """E."""
        return self.streams.num_embeddings

    def only_streams(self) -> None:
        """Freeze all but the streams' embeddings: what the main stream says stays as it is, to the bit."""
        for name, weight in self.named_parameters():
            weight.requires_grad_(name == WEIGHT)

    @classmethod
    def _more(cls, tensors: Tensors) -> tuple[Any, ...]:
        streams = tensors.shape(WEIGHT)[0]
        tensors.agree(streams=streams)
        return (streams,)

    def _facts(self) -> dict[str, Any]:
        return {"architectures": ["StreamHead"], "streams": self.count}

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        """By step of the training-time test the main stream's loss, as EAGLE-3's, and by stream its own.

        A stream's is the cross-entropy of the tokens that followed, times ``share``, over all steps with their
        weights.
        Takes the arguments of ``drafters.trainable.Trainable.losses``.
        """
        place_P = places(wanted_BS[:, 1:])
        law_PD, known_P = laws(target, at(states[Tap(target.depth)][:, 1:], place_P), self.ids)
        feature_BTX = self.feature({tap: state[:, :-1] for tap, state in states.items()}, target)
        pairs = self.reading(tokens_BS[:, 1:].repeat(1, 1 + self.count), target)
        losses: dict[str, Tensor] = {}
        lessons = [self._lesson(tokens_BS, wanted_BS, place_P, stream) for stream in range(1, 1 + self.count)]
        ahead = {f"stream {stream}": feature_BTX.new_zeros(()) for stream in range(1, 1 + self.count)}
        for step, own_BFTX in enumerate(
            unrolled_streams(pairs, feature_BTX, self.streams.weight, self.lags.weight)
        ):
            here_P, weight = at(begun(wanted_BS[:, :-1], step), place_P), DECAY**step
            said_PD = self._said(at(own_BFTX[:, 0], place_P))
            losses[f"step {step + 1}"] = weight * mean_loss(said_PD, law_PD, here_P & known_P)
            for stream, (name, (taught_P, label_P)) in enumerate(zip(ahead, lessons, strict=True), 1):
                said_PD = self._said(at(own_BFTX[:, stream], place_P))
                ahead[name] = ahead[name] + self.share * weight * mean_loss(said_PD, label_P, here_P & taught_P)
        return losses | ahead

    def _lesson(self, tokens_BS: Tensor, wanted_BS: Tensor, place_P: Tensor, stream: int) -> tuple[Tensor, Tensor]:
        """bool [P]: whether a stream learns at a pair if the draft began where it should; and int64 [P], the token
        in the draft vocabulary. Pair t is that of token t + 1: the stream says token t + 2 + j."""
        place_V = torch.full((self.vocab_size,), -1, device=tokens_BS.device)
        place_V[self.ids] = torch.arange(len(self.ids), device=tokens_BS.device)
        wanted_BT = pad(wanted_BS[:, :-1], (0, stream + 1))[:, 1 + stream : tokens_BS.shape[1] + stream]
        label_BT = pad(place_V[tokens_BS], (0, stream + 1), value=-1)[
            :, 2 + stream : 1 + stream + tokens_BS.shape[1]
        ]
        label_P = at(label_BT, place_P)
        return at(wanted_BT, place_P) & (label_P >= 0), label_P.clamp(min=0)


def unrolled_streams(read: Read, features_BTX: Tensor, streams_EX: Tensor, lags_LX: Tensor) -> Iterator[Tensor]:
    """What a head makes in every step of the training-time test, [B, F, T, X] each; see ``drafters.unrolled``.

    At place t step j reads the last true feature, that of pair t - j. Later steps see pairs, never streams.

    Args:
        read: (features, positions [1, F * T], attention) to what the head makes of them and of its tokens.
        features_BTX: the target's.
        streams_EX: the streams' embeddings.
        lags_LX: those of lags, one for each step but the first.
    """
    size, apart_FX = features_BTX.shape[1], pad(streams_EX, (0, 0, 1, 0))
    further_F1 = torch.arange(len(apart_FX), device=features_BTX.device)[:, None]
    positions_1W = (further_F1 + torch.arange(size, device=features_BTX.device)).flatten()[None]
    past = PairsPast(size)
    for step, lag_X in enumerate(pad(lags_LX, (0, 0, 1, 0))):
        feature_BWX = (features_BTX[:, None] + lag_X + apart_FX[:, None]).flatten(1, 2)
        seen = streams_see(step, size, len(streams_EX), features_BTX.device)
        own_BWX = read(feature_BWX, positions_1W, attention_mask=seen, past_key_values=past)
        yield own_BWX.unflatten(1, (len(apart_FX), size))
        features_BTX = pad(features_BTX[:, :-1], (0, 0, 1, 0))


class PairsPast(Past):
    """Keeps the first keys and values of each step, those of pairs: streams behind them are gone with the step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def update(self, keys: Tensor, values: Tensor, layer: int, *others: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """Those of this step too, side by side with the earlier ones."""
        both = super().update(keys, values, layer, *others, **more)
        self._held[layer][-1] = keys[:, :, : self._size], values[:, :, : self._size]
        return both


def streams_see(step: int, size: int, streams: int, device: torch.device) -> Tensor:
    """bool [1, 1, F * T, step * T + F * T]: what the pair sees, and streams up to their own at the same place."""
    pairs = seen_by(step, size, device)[0, 0].repeat(1 + streams, 1)
    upto_FE = torch.ones(1 + streams, streams, dtype=torch.bool, device=device).tril(-1)
    beside = torch.kron(upto_FE, torch.eye(size, dtype=torch.bool, device=device))
    return torch.cat([pairs, beside], 1)[None, None]
