"""What decoding costs elsewhere: Hugging Face, economize and flashspec on the same two modules, kept in memory.

economize and flashspec are no dependencies of ours: an arm imports its library in its first generation, and one
that cannot be imported is left out like any arm that fails. Neither of the two reserves a share of the GPU, as
servers do, nor starts a process group: what they hold are caches of one sequence and their recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from drafters import ModelDrafter
from experiments.bench_arms import Sample
from experiments.bench_economize import Economize, EconomizeAhead
from experiments.bench_flashspec import FlashSpec
from experiments.bench_huggingface import HuggingFace, assisted
from experiments.bench_task import Task
from verifiers import FullVerifier

Decode = Callable[[list[int]], Sample]


@dataclass(frozen=True)
class PeerArm:
    """Another library's way to decode, greedy, with its own attention and cache. It may fail."""

    name: str
    decode: Decode
    length: int = 0

    def __call__(self, prompt: list[int]) -> Sample:
        return self.decode(prompt)


def peer_arms(
    verifier: FullVerifier, drafter: ModelDrafter, names: Sequence[str], new_tokens: int, length: int
) -> list[PeerArm]:
    """The ways that are named. Raises ValueError for an unknown one."""
    if wrong := [name for name in names if name not in WAYS]:
        raise ValueError(f"peers must be among {', '.join(WAYS)}, not {wrong[0]!r}")
    task = Task(verifier.model.network.module, drafter.model.network.module, new_tokens, length)
    return [PeerArm(title(name), WAYS[name](task)) for name in names]


def title(name: str) -> str:
    """What the tables call a way."""
    return name.replace("-", " ") if "-" in name else f"hf {name}"


WAYS: Mapping[str, Callable[[Task], Decode]] = {
    "generate": lambda task: HuggingFace(task.target, task.new_tokens),
    "static": lambda task: HuggingFace(task.target, task.new_tokens, {"cache_implementation": "static"}),
    "assisted": lambda task: HuggingFace(task.target, task.new_tokens, assisted(task.assistant, task.length)),
    "economize-plain": lambda task: Economize(task, 0),
    "economize-draft": lambda task: Economize(task, task.length),
    "economize-sync": lambda task: EconomizeAhead(task, "sync"),
    "economize-async": lambda task: EconomizeAhead(task, "async"),
    "flashspec-draft": lambda task: FlashSpec(task, fixed=True),
    "flashspec-auto": lambda task: FlashSpec(task, fixed=False),
}
