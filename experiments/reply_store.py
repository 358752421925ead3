"""Replies of a target that are kept, so that they need not be written twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from experiments.replies import Text
from experiments.writing import Portion, answered
from verifiers import FullVerifier

log = logging.getLogger(__name__)

PROBE = 64  # values from both ends of every weight


class ReplyStore:
    """Replies by what made them: the target's weights and end tokens, the prompts, the law and the noise.

    A file for every portion, which holds token ids and no text. A portion can be written by any process, and
    what is on the disk is never half written.

    Args:
        folder: where files are, or will be.
        verifier: runs the target.
    """

    def __init__(self, folder: Path, verifier: FullVerifier) -> None:
        self.folder, self.verifier = folder, verifier
        self._target = {
            "weights": fingerprint(verifier.model.network.module.state_dict()),
            "ends": sorted(verifier.end_tokens),
        }

    def __contains__(self, portion: Portion) -> bool:
        """Whether its replies are there."""
        return self.path(portion).exists()

    def path(self, portion: Portion) -> Path:
        """Where its replies are, or will be."""
        made = {**self._target, **asdict(portion)}
        if portion.sampling.greedy:
            del made["seed"]
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.jsonl"

    def texts(self, portion: Portion) -> list[Text]:
        """The replies to a portion; written by the target where they are not there."""
        path = self.path(portion)
        if path.exists():
            try:
                return [Text(prompt, reply) for prompt, reply in read(path, portion)]
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s is damaged and is written anew: %s", path, error)
        texts = answered(self.verifier, portion)
        try:
            keep(path, texts)
        except OSError as error:
            log.warning("replies could not be kept in %s, and would have to be written again: %s", path, error)
        return texts


def read(path: Path, portion: Portion) -> list[tuple[tuple[int, ...], int]]:
    """Tokens of prompt and reply, and how many are the prompt's. Raises ValueError for those of other prompts."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if len(lines) != len(portion.prompts):
        raise ValueError(f"{len(lines)} replies to {len(portion.prompts)} prompts")
    return [
        (prompt + tuple(line["reply"]), len(prompt)) for prompt, line in zip(portion.prompts, lines, strict=True)
    ]


def keep(path: Path, texts: list[Text]) -> None:
    """Write replies whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")  # other processes may write the same
    try:
        scratch.write_text("".join(json.dumps({"reply": text.tokens[text.prompt :]}) + "\n" for text in texts))
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """What tells weights apart: names, shapes, types, and values from both ends of each."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        flat = weight.detach().flatten()
        some = torch.cat([flat[:PROBE], flat[-PROBE:]]).float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
