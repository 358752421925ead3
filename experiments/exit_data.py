"""What exits are trained on: states of the target while it answers questions and continues code.

T taps, P places, X hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.replies import states
from experiments.requests import Request
from experiments.writing import Writing, written
from verifiers import FullVerifier


@dataclass(frozen=True)
class Pool:
    """States behind all taps, the last of which is the last layer.

    Attributes:
        train: [T, P, X], to learn from.
        held: [T, P, X], of other prompts.
    """

    train: Tensor
    held: Tensor


def collect(
    verifier: FullVerifier,
    asked: Sequence[Request],
    how: Writing,
    layers: Sequence[int],
    say: Callable[[str], None],
) -> Pool:
    """Ask the target, and read its replies: states in its own type, in host memory.

    Args:
        verifier: runs the target.
        asked: what to ask for.
        how: how it is to answer.
        layers: behind which there is to be an exit; the last layer comes by itself.
        say: hears how long it will take.

    Raises:
        ValueError: no reply is left to train on, or none to hold out.
    """
    taps = (*layers, verifier.model.network.depth)
    parts: dict[bool, list[Tensor]] = {False: [], True: []}
    start, done = time.perf_counter(), 0
    for held, texts in written(verifier, asked, how):
        parts[held].append(states(verifier.model, texts, taps).cpu())
        if not done:  # the longest prompts: the others take less
            minutes = (time.perf_counter() - start) * len(asked) / len(texts) / 60
            say(f"writing and reading {len(asked)} replies: at most {minutes:.1f} minutes")
        done += len(texts)
    if not all(parts.values()):
        raise ValueError("no prompt is left to train on or to hold out: ask for more replies, or longer prompts")
    return Pool(torch.cat(parts[False], 1), torch.cat(parts[True], 1))
