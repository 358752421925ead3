"""What an object is known by: its value, or being itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any


class Itself:
    """An object that is equal to nothing but itself. It is not kept alive, if that can be helped.

    Once it is gone nothing is equal to this any more, not even what comes to lie in the same place.
    """

    __slots__ = ("_kept", "_place", "_there")

    def __init__(self, value: Any) -> None:
        self._place = id(value)
        self._there: weakref.ref[Any] | None = None
        self._kept = None
        try:
            self._there = weakref.ref(value)
        except TypeError:  # of some types nothing can be known without keeping it
            self._kept = value

    @property
    def value(self) -> Any:
        """The object, None once it is gone."""
        return self._kept if self._there is None else self._there()

    @property
    def gone(self) -> bool:
        """Whether nobody has it any more."""
        return self._there is not None and self._there() is None

    def watch(self, heard: Callable[[Any], None]) -> Any:
        """Have ``heard`` called when the object goes, as long as what this gives is kept."""
        return None if self._there is None or self.gone else weakref.ref(self.value, heard)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self._place == other._place and not (self.gone or other.gone)

    def __hash__(self) -> int:
        return self._place


def known_by(thing: Any) -> Hashable:
    """What a thing is compared by: its value where it has one, else itself; part by part in a tuple.

    What can be compared but not hashed may change, so that it counts as itself.
    """
    if type(thing) is tuple:
        return tuple(map(known_by, thing))
    if type(thing).__eq__ is object.__eq__:
        return Itself(thing)
    try:
        hash(thing)
    except TypeError:
        return Itself(thing)
    return thing
