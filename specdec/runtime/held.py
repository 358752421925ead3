"""Values taken apart into tensors and what is none, so that like ones can be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from specdec.runtime.itself import Itself, known_by

KNOWN = "_taken_apart"  # attribute in which a value keeps what ``flatten`` found


def flatten(value: Any, leaves: list[Tensor]) -> Any:
    """Collect the tensors in a value; what is left says how to put it together, and can be compared."""
    if isinstance(value, Tensor):
        leaves.append(value)
        return (Tensor, tuple(value.shape), value.dtype)
    if isinstance(value, tuple | list):
        return (tuple, tuple(flatten(part, leaves) for part in value))
    if isinstance(value, Mapping):
        return (dict, tuple((key, flatten(part, leaves)) for key, part in value.items()))
    if is_dataclass(value) and not isinstance(value, type):
        shape, found = vars(value).get(KNOWN) or _taken_apart(value)
        leaves += found
        return shape
    return (None, Held(value))


def _taken_apart(value: Any) -> tuple[Form, list[Tensor]]:
    """Shape and tensors of a dataclass; one that cannot change and has tensors keeps them.

    What a recording gives is the same object every time, and taking it apart anew would take the host longer than
    to launch the next recording.
    """
    found: list[Tensor] = []
    parts = tuple((part.name, flatten(getattr(value, part.name), found)) for part in fields(value) if part.init)
    shape = Form((type(value), parts))
    if found and type(value).__dataclass_params__.frozen:
        vars(value)[KNOWN] = shape, found
    return shape, found


class Form(tuple[Any, ...]):
    """A shape that is hashed once."""

    def __hash__(self) -> int:
        known = vars(self)
        if "hash" not in known:
            known["hash"] = super().__hash__()
        return int(known["hash"])


def rebuild(shape: Any, leaves: Iterator[Tensor]) -> Any:
    """The value that ``flatten`` took apart, with other tensors."""
    kind, content = shape[0], shape[1]
    if kind is Tensor:
        return next(leaves)
    if kind is tuple:
        return tuple(rebuild(part, leaves) for part in content)
    if kind is dict:
        return {key: rebuild(part, leaves) for key, part in content}
    if kind is None:
        return content.value
    return kind(**{name: rebuild(part, leaves) for name, part in content})


def released(shape: Any) -> Any:
    """What ``flatten`` gave, equal to it, without the values."""
    if isinstance(shape, Held):
        return shape.released()
    return tuple(map(released, shape)) if isinstance(shape, tuple) else shape


def themselves(shape: Any) -> Iterator[Itself]:
    """All that counts as itself in what ``flatten`` gave."""
    if isinstance(shape, Itself):
        yield shape
    elif isinstance(shape, Held):
        yield from themselves(shape.identity)
    elif isinstance(shape, tuple):
        for part in shape:
            yield from themselves(part)


class Held:
    """Something that is no tensor: equal if it is equal, or stands for the same (its ``identity``).

    An ``identity`` must name whatever owns the tensors that a part finds by it, since only what is named there is
    heard of when it goes.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.identity = known_by(getattr(value, "identity", value))

    def released(self) -> Held:
        """Its equal, without the value."""
        bare = Held(None)
        bare.identity = self.identity
        return bare

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)
