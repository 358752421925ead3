"""Heads with random weights in the layouts of their authors, and what those say, in a few lines."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu

from specdec import Context, Draft, Ratio, Sampling
from specdec.noise import Still
from specdec.sequences import Sequences
from verifiers import FullVerifier

Named = dict[str, Tensor]


def scattered(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> Named:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def medusa(hidden: int, vocabulary: int, heads: int = 3, layers: int = 1) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for layer in range(layers):
            shapes[f"{head}.{layer}.linear.weight"] = (hidden, hidden)
            shapes[f"{head}.{layer}.linear.bias"] = (hidden,)
        shapes[f"{head}.{layers}.weight"] = (vocabulary, hidden)
    return shapes


def hydra(
    hidden: int, vocabulary: int, heads: int = 3, layers: int = 2, grounded: bool = True
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for layer in range(layers):
            inputs = hidden * (head + 2) if grounded and layer == 0 else hidden
            parts = ["linear", "res_connection"] if grounded and layer == 0 else ["linear"]
            for part in parts:
                shapes[f"hydra_mlp.{head}.{layer}.{part}.weight"] = (hidden, inputs)
                shapes[f"hydra_mlp.{head}.{layer}.{part}.bias"] = (hidden,)
        shapes[f"hydra_lm_head.{head}.weight"] = (vocabulary, hidden)
        shapes[f"hydra_lm_head.{head}.bias"] = (vocabulary,)
    return shapes


def redrafter(
    hidden: int, vocabulary: int, exit: int, layers: int = 2, rnn: bool = True
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if exit != 2 * hidden:
        shapes |= {"input_proj.weight": (exit, 2 * hidden), "input_proj.bias": (exit,)}
    for layer in range(layers):
        shapes |= {f"lm_head.{layer}.linear.weight": (exit, exit), f"lm_head.{layer}.linear.bias": (exit,)}
    shapes[f"lm_head.{layers}.weight"] = (vocabulary, exit)
    if rnn:
        shapes |= {"rnn_u.weight": (hidden, hidden), "rnn_u.bias": (hidden,), "rnn_w.weight": (hidden, hidden)}
    return shapes


def block(x: Tensor, named: Named, name: str) -> Tensor:
    return silu(x @ named[f"{name}.linear.weight"].T + named[f"{name}.linear.bias"])


def medusa_says(named: Named, state_X: Tensor, path_KX: Tensor, layers: int = 1) -> Tensor:
    """[V] of head K - 1, from the state before the first of K tokens."""
    head, x = len(path_KX) - 1, state_X
    for layer in range(layers):
        x = x + block(x, named, f"{head}.{layer}")
    return named[f"{head}.{layers}.weight"] @ x


def hydra_says(named: Named, state_X: Tensor, path_KX: Tensor, layers: int = 2) -> Tensor:
    head, x = len(path_KX) - 1, torch.cat([state_X, *path_KX])
    for layer in range(layers):
        name = f"hydra_mlp.{head}.{layer}"
        through = x
        if layer == 0:
            through = named[f"{name}.res_connection.weight"] @ x + named[f"{name}.res_connection.bias"]
        x = through + block(x, named, name)
    return named[f"hydra_lm_head.{head}.weight"] @ x + named[f"hydra_lm_head.{head}.bias"]


def redrafter_says(named: Named, state_X: Tensor, path_KX: Tensor, layers: int = 2) -> Tensor:
    s_X = torch.zeros_like(state_X)
    for e_X in path_KX:
        if "rnn_w.weight" in named:
            u_X = named["rnn_u.weight"] @ s_X + named["rnn_u.bias"]
            s_X = silu(named["rnn_w.weight"] @ e_X + u_X)
        else:
            s_X = s_X + e_X
    x = torch.cat([state_X, s_X])
    if "input_proj.weight" in named:
        x = named["input_proj.weight"] @ x + named["input_proj.bias"]
    for layer in range(layers):
        x = x + block(x, named, f"lm_head.{layer}")
    return named[f"lm_head.{layers}.weight"] @ x


def laid(path: Path, file: str, named: Named, **config: object) -> Path:
    """A directory with a file of tensors and a configuration."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(named, path / file) if file.endswith("safetensors") else torch.save(named, path / file)
    (path / "config.json").write_text(json.dumps(config))
    return path


def prefilled(
    verifier: FullVerifier, drafter: object, rows: list[list[int]], sampling: Sampling | None = None
) -> Context:
    """What a drafter sees after round zero, of prompts alone."""
    seq = Sequences.start(rows, 16, sampling=sampling)
    drafter.begin(verifier, seq)  # type: ignore[attr-defined]
    verifier.begin(seq, drafter.wants)  # type: ignore[attr-defined]
    draft = Draft.empty(seq.lengths)
    evidence = verifier.score(seq, draft)
    verdict = Ratio()(draft, evidence.laws(), Still())
    return verifier.commit(seq, draft, verdict).context(evidence.along(verdict))
