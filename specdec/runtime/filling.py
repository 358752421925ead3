"""Values on their way to where a recording reads them. L tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Bytes up to which all is copied byte by byte in one launch; of more, each type is copied for itself.
LITTLE = 1 << 16


class Filling:
    """Copies values to their places, as a rule in one launch; those that are there already stay.

    In a round that is replayed the values are results of other recordings, the same tensors every time: what is to
    be copied where is found out once.
    """

    def __init__(self, places: Sequence[Tensor]) -> None:
        self._places = places
        self._values: Sequence[Tensor] | None = None
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = []

    def __call__(self, values: Sequence[Tensor]) -> None:
        """Copy ``values``, one for each place and of its shape and type."""
        if values is not self._values:
            self._values, self._copies = values, copies(self._places, values)
        for targets, sources in self._copies:
            torch._foreach_copy_(targets, sources)


def copies(places: Sequence[Tensor], values: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Which tensors go where, in lists of one type each."""
    pairs = [pair for pair in zip(places, values, strict=True) if pair[0] is not pair[1] and pair[0].numel()]
    lie = all(tensor.is_contiguous() for pair in pairs for tensor in pair)
    if lie and sum(place.nbytes for place, _ in pairs) <= LITTLE:
        pairs = [(as_bytes(place), as_bytes(value)) for place, value in pairs]
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in pairs:
        targets, sources = by_type.setdefault(place.dtype, ([], []))
        targets.append(place)
        sources.append(value)
    return list(by_type.values())


def as_bytes(tensor: Tensor) -> Tensor:
    """uint8 [bytes]: the memory of a contiguous tensor, which may have any stride in a dimension of one."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
