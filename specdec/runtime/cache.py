"""The KV cache: preallocated, written at explicit slots.

B rows, S slots per row, W tokens of one forward, H key-value heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.kernels import here


@dataclass(eq=False)
class KVCache:
    """Keys and values of every layer, [B, H, S + 1, E] each; the last slot takes what padding writes.

    Rolling back is a matter of lengths, which the cache does not know: whoever reads says how many slots.
    A layer's buffers are made when it first writes, since only then its shape and type are known.

    Args:
        rows: B.
        slots: S.
    """

    rows: int
    slots: int
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    _addresses: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)

    @property
    def trash(self) -> int:
        """The slot that padding writes to: the last one, so that -1 is it as well."""
        return self.slots

    def ready(self, layer: int, heads: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer [B, heads, S + 1, size], of the type of ``like`` if they are made now."""
        if layer not in self.keys:
            empty = like.new_empty((self.rows, heads, 0, size))
            self.keys[layer], self.values[layer] = self._buffer(empty), self._buffer(empty)
        return self.keys[layer], self.values[layer]

    def write(self, layer: int, keys: Tensor, values: Tensor, index_BW: Tensor, start: int | None) -> None:
        """Store [B, H, W, E] at slots ``index_BW``; ``start`` says that they are that slot and the next ones."""
        if layer not in self.keys:
            self.keys[layer], self.values[layer] = self._buffer(keys), self._buffer(values)
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if start is not None:
                buffer[:, :, start : start + new.shape[2]] = new
            else:
                row_B1 = torch.arange(self.rows, device=new.device)[:, None]
                buffer[row_B1, :, index_BW] = new.transpose(1, 2)

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Views of the first ``length`` slots."""
        return self.keys[layer][:, :, :length], self.values[layer][:, :, :length]

    def move(self, source_BD: Tensor, target_BD: Tensor) -> None:
        """Copy slots of every layer; all are read before any is written."""
        buffers_L = [*self.keys.values(), *self.values.values()]
        if here(source_BD) and len({(buffer.shape, buffer.dtype, buffer.device) for buffer in buffers_L}) == 1:
            from specdec.kernels.states import moved

            moved(self._addressed(buffers_L), buffers_L[0], source_BD, target_BD)
            return
        row_B1 = torch.arange(self.rows, device=source_BD.device)[:, None]
        for buffers in (self.keys, self.values):
            for buffer in buffers.values():
                buffer[row_B1, :, target_BD] = buffer[row_B1, :, source_BD]

    def _addressed(self, buffers_L: list[Tensor]) -> Tensor:
        """int64 [L]: where buffers lie.

        It is kept as long as this is, for what was recorded with it: a drafter may add a layer of its own later.
        """
        addresses = tuple(buffer.data_ptr() for buffer in buffers_L)
        if addresses not in self._addresses:
            self._addresses[addresses] = torch.tensor(addresses, device=buffers_L[0].device)
        return self._addresses[addresses]

    def grow(self, slots: int) -> None:
        """Make room for at least ``slots`` slots, keeping what is stored."""
        if slots <= self.slots:
            return
        more = max(slots, 2 * self.slots) - self.slots
        for buffers in (self.keys, self.values):
            for layer, buffer in buffers.items():
                buffers[layer] = torch.nn.functional.pad(buffer, (0, 0, 0, more))
        self.slots += more

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_zeros((self.rows, like.shape[1], self.slots + 1, like.shape[3]))
