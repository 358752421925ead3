"""Weights of a draft head on disk: every tensor is asked for by name, and none is left over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


class Tensors:
    """Named tensors, each of which is taken once.

    Args:
        found: the tensors.
        source: where they are from, for errors.
    """

    def __init__(self, found: Mapping[str, Tensor], source: str | Path) -> None:
        self._left, self.source = dict(found), source

    @classmethod
    def read(cls, path: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
        """Of a safetensors file, or of a directory that holds one or an index of many.

        Args:
            path: the file or the directory.
            wanted: which names are to be read; the others are not even looked at.

        Raises:
            ValueError: there is no such file, or it is damaged.
        """
        found: dict[str, Tensor] = {}
        try:
            for file in files_of(Path(path).expanduser(), wanted):
                with safe_open(file, framework="pt") as opened:
                    names = filter(wanted, opened.keys())
                    found |= {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no weights that can be read: name a directory with {WEIGHTS} or {INDEX}, or a "
                f".safetensors file ({error})"
            ) from error
        return cls(found, path)

    @property
    def names(self) -> list[str]:
        """Those that nobody has taken yet."""
        return sorted(self._left)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that must be there. Raises ValueError where it is missing or of another shape."""
        if name not in self._left:
            raise ValueError(f"{self.source} has no tensor {name}")
        tensor = self._left.pop(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} in {self.source} must be {list(shape)} by its sizes, not {list(tensor.shape)}"
            )
        return tensor

    def fill(self, module: nn.Module, named: Callable[[str], str] = lambda name: name) -> None:
        """Give a module its weights, in the type that they are stored in.

        ``named`` gives the name of a weight here from its name in the module. Raises what ``take`` raises.
        """
        state = module.state_dict()
        weights = {name: self.take(named(name), tuple(weight.shape)) for name, weight in state.items()}
        module.load_state_dict(weights, assign=True)

    def finish(self) -> None:
        """Raises ValueError where a tensor was not taken: what is not understood may not be ignored."""
        if self._left:
            raise ValueError(f"{self.source} holds tensors that are not understood: {', '.join(self.names)}")


def files_of(path: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Files that hold the wanted tensors."""
    if not path.is_dir() or not (path / INDEX).exists():
        return [path / WEIGHTS if path.is_dir() else path]
    placed: dict[str, str] = json.loads((path / INDEX).read_text())["weight_map"]
    return [path / name for name in sorted({file for tensor, file in placed.items() if wanted(tensor)})]


def read_config(path: str | Path) -> dict[str, Any]:
    """A directory's ``config.json``. Raises ValueError where there is none."""
    file = Path(path).expanduser() / CONFIG
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no checkpoint, {CONFIG} in it cannot be read: {error}") from error


def write(directory: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A checkpoint that can be read again."""
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n")
    kept = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(kept, directory / WEIGHTS, {"format": "pt"})
