"""Messages as bytes: tensors by safetensors, all else as JSON beside them, nothing that could run code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from safetensors.torch import load, save
from torch import Tensor

from specdec.hypotheses import Candidates
from specdec.messages import VERSION, Closing, Early, Message, Opening, Outcome, Ready, Window
from specdec.sampling import Sampling
from specdec.trace import Span
from specdec.types import Advice, Draft, Tap, Top, Tops

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Opening, Ready, Early, Outcome, Window, Closing),
        *(Advice, Candidates, Draft, Sampling, Span, Tap, Top, Tops),
    )
}

HINTS = {kind: get_type_hints(kind) for kind in KINDS.values()}


def encode(message: Message) -> bytes:
    """A message as bytes."""
    tensors: list[Tensor] = []
    body = {"version": VERSION, "message": pack(message, tensors)}
    # Copies: safetensors takes no two names for one memory.
    named = {
        str(index): tensor.cpu().clone(memory_format=torch.contiguous_format)
        for index, tensor in enumerate(tensors)
    }
    return save(named, metadata={"specdec": json.dumps(body)})


def decode(content: bytes) -> Message:
    """The message that was encoded.

    Raises:
        ValueError: it was cut short, is none, or is of another version.
    """
    try:
        size = struct.unpack("<Q", content[:8])[0]
        body = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["specdec"])
        version, packed = body["version"], body["message"]
        tensors = load(content)
    except Exception as error:  # whatever damage leads to
        raise ValueError(f"a message of {len(content)} bytes is damaged: {error}") from error
    if version != VERSION:
        raise ValueError(f"the other side speaks version {version} of the messages, this one {VERSION}")
    try:
        message = unpack(packed, tensors)
    except Exception as error:  # a part may be missing, unknown, or anything at all
        raise ValueError(f"a message has a part that is none: {error}") from error
    if not isinstance(message, Opening | Ready | Early | Outcome | Window | Closing):
        raise ValueError(f"a {type(message).__name__} is no message")
    return message


def pack(value: Any, tensors: list[Tensor]) -> Any:
    """A value as JSON; its tensors go to a list, and their places into the JSON."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1, "shape": list(value.shape), "type": str(value.dtype)}
    if is_dataclass(value) and not isinstance(value, type):
        content = {part.name: pack(getattr(value, part.name), tensors) for part in fields(value) if part.init}
        return {"kind": type(value).__name__, "content": content}
    if isinstance(value, tuple | list):
        return [pack(part, tensors) for part in value]
    if isinstance(value, Mapping):
        return {"mapping": [[pack(key, tensors), pack(part, tensors)] for key, part in value.items()]}
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that ``pack`` took apart."""
    if isinstance(value, list):
        return tuple(unpack(part, tensors) for part in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return checked(tensors[str(value["tensor"])], value["shape"], value["type"])
    if "mapping" in value:
        return {unpack(key, tensors): unpack(part, tensors) for key, part in value["mapping"]}
    kind, content = KINDS[value["kind"]], {name: unpack(part, tensors) for name, part in value["content"].items()}
    for name, hint in HINTS[kind].items():
        if name in content and not fits(content[name], hint):
            raise ValueError(f"{name} of a {kind.__name__} is a {type(content[name]).__name__}")
    return kind(**content)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a kind that a part of a message may have."""
    if isinstance(hint, UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(part, get_args(hint)[0]) for part in value)
    if get_origin(hint) is Mapping:
        keys, parts = get_args(hint)
        return isinstance(value, dict) and all(
            fits(key, keys) and fits(part, parts) for key, part in value.items()
        )
    if hint in (int, float):  # JSON may write a whole number for a float; a truth value is neither
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def checked(tensor: Tensor, shape: Sequence[int], dtype: str) -> Tensor:
    """A tensor, if it is what was said of it. Raises ValueError else."""
    if list(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype.removeprefix("torch.")):
        raise ValueError(f"a tensor of a message is {tuple(tensor.shape)}, {tensor.dtype}, not {shape}, {dtype}")
    return tensor
