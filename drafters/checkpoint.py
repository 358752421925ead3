"""Trained drafters on disk: tensors under the names that their authors gave them, all of them accounted for."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from drafters.weights import located

FILES = ("model.safetensors", "pytorch_model.bin")  # as Hugging Face names them
CONFIG, SUFFIX, INDEX = "config.json", ".safetensors", ".index.json"


@dataclass
class Tensors:
    """What a checkpoint holds, until it is taken.

    Attributes:
        file: where it was read.
        config: the ``config.json`` beside it, empty where there is none.
        left: by name, what nobody has taken yet.
    """

    file: Path
    config: dict[str, Any]
    left: dict[str, Tensor]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that is left. Raises ValueError where there is none of that name."""
        if name not in self.left:
            raise ValueError(f"{self.file} lacks {name}: it is incomplete, or of another layout")
        return tuple(self.left[name].shape)

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor. Raises ValueError where there is none of that name, or it has another shape."""
        found = self.shape(name)
        if found != tuple(shape):
            raise ValueError(f"{name} in {self.file} has shape {list(found)} where {list(shape)} is needed")
        return self.left.pop(name)

    def has(self, part: str) -> bool:
        """Whether a name has this in it."""
        return any(part in name for name in self.left)

    def count(self, pattern: str) -> int:
        """One more than the largest number in names of this pattern, whose first group is a number."""
        return max((int(found[1]) + 1 for name in self.left if (found := re.match(pattern, name))), default=0)

    def agree(self, **facts: object) -> None:
        """Raises ValueError where ``config.json`` says something else of the tensors than they do."""
        for key, value in facts.items():
            if self.config.get(key, value) != value:
                raise ValueError(
                    f"{key} is {self.config[key]} in the {CONFIG} beside {self.file}, but {value} by its tensors"
                )

    def sizes(self, part: str | None = None) -> dict[str, Any]:
        """What ``config.json`` says of the sizes, in a part of it where there is one of that name.

        Raises ValueError where it does not say them.
        """
        found: dict[str, Any] = (part and self.config.get(part)) or self.config
        if missing := [name for name in ("hidden_size", "vocab_size") if name not in found]:
            raise ValueError(f"there is no {CONFIG} beside {self.file} that gives {' and '.join(missing)}")
        return found

    def finish(self) -> None:
        """Raises ValueError where something was not taken."""
        if self.left:
            names = ", ".join(sorted(self.left)[:3])
            raise ValueError(f"{self.file} holds tensors that belong nowhere ({names}): it is of another layout")


def read(path: str | Path, names: Sequence[str], wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    """The tensors of a checkpoint, on the CPU and in the types that they have there.

    Args:
        path: a file, or a directory that holds one of ``names``, or what is shipped: see ``drafters.weights``.
        names: of files, the first that is there is read, or those that its index names. What does not end in
            ``.safetensors`` is a pickle: only tensors are taken out of it, nothing in it is run.
        wanted: which tensors are read; the others are not even looked at.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds more than tensors.
    """
    path = located(path)
    files = [path, *(file for name in names for file in (path / name, path / f"{name}{INDEX}"))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"there are no weights at {path}: name a directory that holds {' or '.join(names)}, or such a file"
        )
    found: dict[str, Tensor] = {}
    for part in _parts(file, wanted):
        found |= _safe(part, wanted) if part.suffix == SUFFIX else _pickled(part)
    return Tensors(file, _config(file.parent / CONFIG), {name: found[name] for name in filter(wanted, found)})


def write(path: str | Path, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a file of tensors and a ``config.json`` into a directory, which is made."""
    directory = Path(path).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    plain = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    if name.endswith(SUFFIX):
        save_file(plain, directory / name)
    else:
        torch.save(plain, directory / name)
    (directory / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")


def fill(module: nn.Module, give: Callable[[str, tuple[int, ...]], Tensor]) -> None:
    """Give every parameter of a module that was made on no device (``meta``) its values, by name and shape."""
    values = {name: give(name, tuple(weight.shape)) for name, weight in module.named_parameters()}
    module.load_state_dict(values, assign=True)


def _parts(file: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The files that hold what is wanted: itself, or those that it names."""
    if not file.name.endswith(INDEX):
        return [file]
    placed: dict[str, str] = _config(file).get("weight_map", {})
    return [file.parent / name for name in sorted({name for tensor, name in placed.items() if wanted(tensor)})]


def config_of(path: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a directory, empty where there is none; ``path`` and errors are those of ``read``."""
    return _config(located(path) / CONFIG)


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no configuration: it must hold names and values")
    return config


def _safe(file: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in filter(wanted, opened.keys())}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: download or copy it again ({error})") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{file} is damaged, or holds more than tensors, which is not run: download it again, or ask for a "
            f"{SUFFIX} file ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(part, Tensor) for part in found.values()):
        raise ValueError(f"{file} must hold tensors by their names, and nothing else")
    return dict(found)
