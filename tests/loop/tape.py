"""Tensor operations as they are launched, written down to be launched again.

PyTorch's own tracer does this too, but takes a second or two where this takes a few hundredths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
BY_MASK = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
MASKS = (torch.bool, torch.uint8)
# What reads a tensor on a CPU without any operation.
READS = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)


def waits(operation: Any, args: Any) -> bool:
    """Whether the host would have to wait for a GPU, to hear a number or a shape."""
    if operation in BY_MASK:
        return any(index is not None and index.dtype in MASKS for index in args[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags))


class Unread(TorchFunctionMode):
    """While it is entered nobody reads a tensor as a whole."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in READS:
            raise RuntimeError(f"{function.__name__} reads a number on the host")
        return function(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Keeps every operation that runs while it is entered. It fails where a graph would: where the host waits.

    One way to wait it cannot see: ``to("cpu")``, which does nothing where all is on the CPU already.

    Args:
        inputs: the tensors to play from; of the others, those that it does not see being made stay what they are.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._values: dict[str, Any] = {}  # what the lines name that stays what it is
        self._seen: list[Any] = []  # kept to the end: another tensor must not get the identity of one of them
        self._names: dict[int, str] = {}
        self._inputs = [self._name(tensor) for tensor in inputs]
        self._unread = Unread()

    def __enter__(self) -> Tape:
        self._unread.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._unread.__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits(operation, args):
            raise RuntimeError(f"{operation} reads a number on the host")
        given = [self._said(value) for value in args]
        given += [f"{name}={self._said(value)}" for name, value in (kwargs or {}).items()]
        result = operation(*args, **(kwargs or {}))
        many = isinstance(result, tuple | list)
        names = "".join(f"{self._name(value)}, " for value in result) if many else self._name(result)
        self._lines.append(f"{names or '()'} = {self._kept(operation)}({', '.join(given)})")
        return result

    def player(self, out: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
        """A function of the inputs that launches it all again and gives what has become of ``out``."""
        lines = [f"def play({', '.join(self._inputs)}):", *self._lines, f"return {self._said(out)}"]
        exec("\n    ".join(lines), self._values)
        return self._values.pop("play")  # else it would be kept alive by what it keeps

    def _name(self, value: Any) -> str:
        """The name of a result. A tensor that was seen is still itself, though it has another name now."""
        name = f"v{len(self._seen)}"
        self._seen.append(value)
        self._names[id(value)] = name
        return name

    def _said(self, value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(self._said, value))}]"
        seen = isinstance(value, Tensor) and id(value) in self._names
        return self._names[id(value)] if seen else self._kept(value)

    def _kept(self, value: Any) -> str:
        name = f"k{len(self._values)}"
        self._values[name] = value
        return name
