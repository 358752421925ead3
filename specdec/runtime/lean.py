"""Llama-like networks in seven kernels a layer, each bound by the weights it reads.

B rows, W tokens of one forward, M = B * W, K keep, V vocabulary, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from torch import Tensor
from torch.nn.functional import embedding, rms_norm

from specdec.kernels.attention import attend
from specdec.kernels.linear import linear
from specdec.kernels.rotary import rotate
from specdec.runtime.cache import KVCache
from specdec.runtime.readout import Glance
from specdec.runtime.sight import Sight
from specdec.types import Tap


@dataclass(frozen=True)
class LeanLayer:
    """Weights of one decoder layer, projections that read the same input packed into one.

    Attributes:
        norm, mlp_norm: [hidden], weights of the RMS norms before attention and MLP; the first may be None.
        qkv: [(Q + 2H) * E, hidden]; ``qkv_bias`` its bias or None.
        gains: [2, E], norms of query and key heads (Qwen3), or None.
        out: [hidden, Q * E]; ``out_bias`` its bias or None.
        gate_up: [2 * inner, hidden]; down: [hidden, inner].
        sliding: size of the sliding window, None where all is seen.
    """

    norm: Tensor | None
    qkv: Tensor
    qkv_bias: Tensor | None
    gains: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    sliding: int | None = None


@dataclass(frozen=True)
class Kernels:
    """What a layer is made of: ours, or the same in PyTorch."""

    linear: Callable[..., Tensor]
    rotate: Callable[..., Tensor]
    attend: Callable[..., Tensor]


@dataclass(frozen=True)
class LeanNetwork:
    """Embedding, layers, norm and head.

    Attributes:
        embed: [V, hidden].
        layers: the decoder layers.
        norm: [hidden], the final norm's weight.
        head: [V, hidden].
        cosines, sines: [positions, E].
        epsilon: of every norm.
        scale: of the attention scores.
        overlap: whether a kernel may start before the last one has ended.
        kernels: which.
    """

    embed: Tensor
    layers: Sequence[LeanLayer]
    norm: Tensor
    head: Tensor
    cosines: Tensor
    sines: Tensor
    epsilon: float
    scale: float
    overlap: bool
    kernels: Kernels = Kernels(linear, rotate, attend)

    def __call__(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        slots_BW: Tensor,
        caches: Sequence[tuple[Tensor, Tensor]],
        sight: Sight,
        keep: int,
        taps: tuple[Tap, ...] = (),
        glance: Glance | None = None,
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """Logits [B, K, V] of the last ``keep`` tokens, and tapped states [B, W, hidden]."""
        rows, width = tokens_BW.shape
        x_MX = embedding(tokens_BW.flatten(), self.embed)
        states = {0: x_MX}
        sights = {size: sight.within(size) for size in {layer.sliding for layer in self.layers}}
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True), 1):
            x_MX = self.layer(layer, x_MX, x_MX, positions_BW, slots_BW, cache, sights[layer.sliding])
            states[index] = x_MX
            if glance is not None and glance.layer == index:
                glance.take(x_MX.unflatten(0, (rows, width)))
        logits_BKV = self.read_out(x_MX.unflatten(0, (rows, width))[:, width - keep :])
        return logits_BKV, {tap: states[tap.layer].unflatten(0, (rows, width)) for tap in taps}

    def caches(self, cache: KVCache) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of its layers, made where nothing was written yet."""
        size = self.cosines.shape[1]
        heads = [(len(layer.qkv) - layer.out.shape[1]) // (2 * size) for layer in self.layers]
        return [cache.ready(index, count, size, self.head) for index, count in enumerate(heads)]

    def outlet(self, embed: Tensor, norm: Tensor, head: Tensor) -> LeanNetwork:
        """The ends alone, with copies of their weights on another device."""
        return replace(self, layers=(), embed=embed, norm=norm, head=head)

    def normed(self, state_BWX: Tensor) -> Tensor:
        """States [B, W, hidden] behind the final norm."""
        return rms_norm(state_BWX, self.norm.shape, self.norm, self.epsilon)

    def read_out(self, state_BWX: Tensor) -> Tensor:
        """Logits [B, W, V] of norm and head on states [B, W, hidden]."""
        logits_MV = self.kernels.linear(
            state_BWX.flatten(0, 1), self.head, gain=self.norm, epsilon=self.epsilon, overlap=self.overlap
        )
        return logits_MV.unflatten(0, state_BWX.shape[:2])

    def layer(
        self,
        layer: LeanLayer,
        x_MK: Tensor,
        stream_MX: Tensor,
        positions_BW: Tensor,
        slots_BW: Tensor,
        cache: tuple[Tensor, Tensor],
        sight: Sight,
    ) -> Tensor:
        """[M, hidden], the stream after a layer that reads ``x_MK``; its keys and values go to the cache."""
        qkv_MX = self.kernels.linear(
            x_MK, layer.qkv, gain=layer.norm, epsilon=self.epsilon, bias=layer.qkv_bias, overlap=self.overlap
        )
        q_MX = self.kernels.rotate(
            qkv_MX,
            self.cosines,
            self.sines,
            positions_BW,
            slots_BW,
            layer.gains,
            self.epsilon,
            *cache,
            overlap=self.overlap,
        )
        seen_MX = self.kernels.attend(q_MX, *cache, sight, self.scale, overlap=self.overlap)
        x_MX = self.kernels.linear(
            seen_MX, layer.out, bias=layer.out_bias, residual_MN=stream_MX, overlap=self.overlap
        )
        inner_MX = self.kernels.linear(
            x_MX, layer.gate_up, gain=layer.mlp_norm, epsilon=self.epsilon, gated=True, overlap=self.overlap
        )
        return self.kernels.linear(inner_MX, layer.down, residual_MN=x_MX, overlap=self.overlap)


class HeadlessNetwork(LeanNetwork):
    """Embedding and layers: its logits are the states behind the last one."""

    @classmethod
    def of(cls, network: LeanNetwork) -> HeadlessNetwork:
        """All but norm and head of a network."""
        return cls(**{part.name: getattr(network, part.name) for part in fields(network)})

    def read_out(self, state_BWX: Tensor) -> Tensor:
        """The states."""
        return state_BWX
