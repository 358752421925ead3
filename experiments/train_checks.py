"""What a head is worth while it is trained, on prompts that it does not learn from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

import specdec
from experiments.train_data import Batch
from experiments.trainer import Trainer
from specdec.protocols import Drafter
from verifiers import FullVerifier

log = logging.getLogger(__name__)

MakeDrafter = Callable[[nn.Module], Drafter]


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        losses: means over the wanted places of held-out replies.
        accepted: tokens per forward of the target, prefill aside, on held-out prompts, greedy; 1 without drafts.
            None of a head that is not to draft.
        by_depth: of the drafts that reached a depth with all before accepted, the share accepted there too.
    """

    losses: dict[str, float]
    accepted: float | None
    by_depth: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the log."""
        drafted = {"accepted_tokens": self.accepted, "acceptance_by_depth": list(self.by_depth)}
        held = {f"held_{name}": value for name, value in self.losses.items()}
        return held if self.accepted is None else drafted | held


@dataclass(frozen=True)
class Check:
    """How a head is checked.

    Attributes:
        verifier: the target.
        drafter: makes one of a head, None where it is not to draft.
        batches: held-out replies.
        prompts: token ids of held-out prompts.
        new_tokens: of a reply.
    """

    verifier: FullVerifier
    drafter: MakeDrafter | None
    batches: Sequence[Batch]
    prompts: Sequence[Sequence[int]]
    new_tokens: int

    def __call__(self, trainer: Trainer) -> Found:
        """Check the head as it is now."""
        if self.drafter is None:
            return Found(self.losses(trainer), None, ())
        with trainer.aside():
            drafter = self.drafter(trainer.usable)
            result = specdec.generate(self.verifier, drafter, list(self.prompts), self.new_tokens)
        found = result.metrics
        if found.faults:
            log.warning("the drafter made mistakes in a check: %s", found.faults)
        depths = tuple(depth.accepted / depth.tested for depth in found.positions if depth.tested)
        return Found(self.losses(trainer), found.mean_accepted_tokens, depths)

    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Means over all wanted places, as far as a batch's loss is the mean over its own."""
        sizes = [int(batch.wanted.sum()) for batch in self.batches]
        found = [trainer.losses(batch) for batch in self.batches]
        return {
            name: sum(size * some[name] for size, some in zip(sizes, found, strict=True)) / sum(sizes)
            for name in found[0]
        }


def drafter_maker(node: DictConfig | None) -> MakeDrafter | None:
    """What makes a drafter of a head: its one value that is left open (``???``) takes the head. None for none.

    Raises:
        ValueError: another number of values is left open.
    """
    if node is None:
        return None
    missing = sorted(str(key) for key in node if OmegaConf.is_missing(node, key))
    if len(missing) != 1:
        raise ValueError(
            "head.drafter must leave one value open (???), which takes the head, and leaves open "
            f"{' and '.join(missing) or 'none'}"
        )
    given: Any = OmegaConf.to_container(node, resolve=True)  # it may refer to values outside of it
    rest = {key: value for key, value in given.items() if key != missing[0]}
    made = instantiate(rest, _convert_="all", _partial_=True)

    def make(head: nn.Module) -> Drafter:
        try:
            drafter: Drafter = made(**{missing[0]: head})
        except TypeError as error:
            raise ValueError(f"head.drafter: {error}") from error
        return drafter

    return make
