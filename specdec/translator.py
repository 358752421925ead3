"""Trained exits: what the last layer would say, from a state in the middle.

X hidden size, R width of the gated block, ``...`` any shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear, silu

SHIPPED = Path(__file__).parent / "exits"
SUFFIX = ".safetensors"
AFFINE, GATED = ("matrix", "bias"), ("gate", "value", "out")
EPSILON = 1e-6


class Translator:
    """Adds to a state what the layers behind it would have added, as far as that can be told position by position.

    An affine map as in the tuned lens (Belrose et al., arXiv 2303.08112), and beside it, if there are weights for
    one, a small gated block. Both read the state divided by its root mean square r, and what they give is taken
    times r: the final norm sees no scale either, so one map fits states of any size. Weights of zero change
    nothing, to the bit: an untrained exit is the raw one.

    Args:
        weights: ``matrix`` [X, X] and ``bias`` [X]; or ``gate`` [R, X], ``value`` [R, X] and ``out`` [X, R]; or
            all five.

    Raises:
        ValueError: other names, or shapes that do not fit each other.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.hidden = _checked(self.weights)
        self._fitted: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def __call__(self, state: Tensor) -> Tensor:
        """States [..., X] to states [..., X], on their device and in their type.

        Raises:
            ValueError: states of another hidden size.
        """
        if state.shape[-1] != self.hidden:
            raise ValueError(
                f"this trained exit is for a hidden size of {self.hidden}, but the target's is {state.shape[-1]}"
            )
        weights = self._fitting(state)
        scale = (state.float().square().mean(-1, keepdim=True) + EPSILON).sqrt().to(state.dtype)
        return state + scale * _change(weights, state / scale)

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: copies for this one's devices stay here."""
        return {**self.__dict__, "_fitted": {}}

    def _fitting(self, state: Tensor) -> dict[str, Tensor]:
        place = (state.device, state.dtype)
        if all((weight.device, weight.dtype) == place for weight in self.weights.values()):
            return self.weights
        if place not in self._fitted:  # once, so that a replayed round finds its weights where they were
            self._fitted[place] = {name: weight.to(*place) for name, weight in self.weights.items()}
        return self._fitted[place]


def _change(weights: Mapping[str, Tensor], unit: Tensor) -> Tensor:
    parts = []
    if "matrix" in weights:
        parts.append(linear(unit, weights["matrix"], weights["bias"]))
    if "out" in weights:
        inner = silu(linear(unit, weights["gate"])) * linear(unit, weights["value"])
        parts.append(linear(inner, weights["out"]))
    return sum(parts[1:], parts[0])


def load_translator(name: str | Path, layer: int) -> Translator:
    """The trained exit behind ``layer`` layers.

    Args:
        name: a target that exits are shipped for (``smollm2-135m-instruct``), or a file of ``save_translators``.
        layer: how many layers of the target run before it.

    Raises:
        ValueError: there are none for this target, none behind this layer (it says which there are), or the file
            is damaged.
    """
    path = file_of(name)
    found = _read_once(path, path.stat().st_mtime_ns)
    if layer not in found:
        there = ", ".join(map(str, found))
        raise ValueError(f"{name} has no trained exit behind layer {layer}, only behind {there}")
    return found[layer]


@lru_cache(maxsize=8)
def _read_once(path: Path, _: int) -> dict[int, Translator]:
    # Whoever asks again gets the same weights: a recording reads them where they were.
    return translators(path)


def translators(name: str | Path) -> dict[int, Translator]:
    """All trained exits of a target by their layer, in order; see ``load_translator``."""
    path = file_of(name)
    by_layer: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            hidden = int((file.metadata() or {})["hidden"])
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                layer, _, part = key.partition(".")
                by_layer.setdefault(int(layer), {})[part] = file.get_tensor(key)
        found = {layer: Translator(by_layer[layer]) for layer in sorted(by_layer)}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or holds no trained exits: {error!r}") from error
    for layer, translator in found.items():
        if translator.hidden != hidden:
            raise ValueError(
                f"{path} is damaged: it is for a hidden size of {hidden}, but the exit behind layer {layer} for "
                f"{translator.hidden}"
            )
    return found


def facts(name: str | Path) -> dict[str, str]:
    """What is known of a target's trained exits: target and its sha256, depth, hidden size, recipe.

    Raises:
        ValueError: see ``load_translator``.
    """
    path = file_of(name)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or holds no trained exits: {error!r}") from error


def depth_of(name: str | Path) -> int | None:
    """Layers of the target that trained exits are for, None where their file does not say."""
    depth = facts(name).get("depth")
    return None if depth is None else int(depth)


def save_translators(path: Path, found: Mapping[int, Translator], **facts: Any) -> None:
    """Write trained exits by their layer, in bfloat16, and what is known of them."""
    tensors = {
        f"{layer}.{part}": weight.detach().to("cpu", torch.bfloat16).contiguous()
        for layer, translator in found.items()
        for part, weight in translator.weights.items()
    }
    hidden = {translator.hidden for translator in found.values()}.pop()
    known = {"hidden": hidden, "layers": sorted(found), **facts}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in known.items()}
    save_file(tensors, path, metadata)


def file_of(name: str | Path) -> Path:
    """The file that a name stands for. Raises ValueError where there is none."""
    path = Path(name).expanduser()
    if path.suffix == SUFFIX and path.is_file():
        return path
    shipped = SHIPPED / f"{str(name).lower()}{SUFFIX}"
    if path.name != str(name) or not shipped.is_file():
        there = ", ".join(sorted(file.stem for file in SHIPPED.glob(f"*{SUFFIX}")))
        raise ValueError(
            f"there are no trained exits for {str(name)!r}: name a {SUFFIX} file or one of {there or '(none)'}, "
            "train them with specdec-train head=exit, or take the raw exit (trained=null)"
        )
    return shipped


def _checked(weights: Mapping[str, Tensor]) -> int:
    """X. Raises ValueError where weights do not fit each other."""
    if set(weights) not in (set(AFFINE), set(GATED), {*AFFINE, *GATED}):
        raise ValueError(f"a trained exit has {AFFINE} or {GATED} or both, not {tuple(weights)}")
    hidden = weights["matrix" if "matrix" in weights else "gate"].shape[-1]
    inner = weights["gate"].shape[0] if "gate" in weights else 0
    shapes = {
        "matrix": (hidden, hidden),
        "bias": (hidden,),
        "gate": (inner, hidden),
        "value": (inner, hidden),
        "out": (hidden, inner),
    }
    for name, weight in weights.items():
        if tuple(weight.shape) != shapes[name]:
            raise ValueError(f"{name} of a trained exit must be {list(shapes[name])}, not {list(weight.shape)}")
    return int(hidden)
