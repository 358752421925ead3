"""One head in training: a step, and all that a step depends on, so that it can be kept and gone on with.

B rows, S token slots.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from drafters.trainable import FrozenTarget, checked, taps_of
from experiments.schedule import rate_share
from experiments.train_data import Batch
from specdec import Tap
from specdec.runtime import CachedModel


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        steps: of the optimiser.
        accumulate: batches of a step, in every process.
        rate: learning rate at its highest.
        betas, weight_decay: of AdamW (Loshchilov and Hutter, arXiv 1711.05101).
        warmup: share of the steps in which the rate rises.
        decay: along which it then falls, see ``experiments.schedule``.
        clip: the most that the gradient's norm may be; None for any.
    """

    steps: int
    accumulate: int
    rate: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: float
    decay: str
    clip: float | None


class DivergedError(ValueError):
    """A loss or a gradient is not finite. Nothing of that step has reached the weights."""


class Losses(nn.Module):
    """A head's losses as a forward, which is what can be spread over processes and cast to another type."""

    def __init__(self, head: nn.Module, target: FrozenTarget) -> None:
        super().__init__()
        self.head, self.target = head, target

    def forward(self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor) -> dict[str, Tensor]:
        """Named scalars. Raises ValueError for what is none."""
        found = checked(self.head).losses(states, tokens_BS, wanted_BS, self.target)
        if not found or any(loss.dim() for loss in found.values()):
            raise ValueError("the losses of a head must be named scalars, and at least one")
        return found


class Trainer:
    """Trains a head step by step.

    Args:
        accelerator: knows the other processes, and the type to compute in.
        head: what is to learn, where the target is.
        model: the target.
        recipe: how.

    Raises:
        ValueError: the head cannot be trained, or asks for a state that the target has not.
    """

    def __init__(self, accelerator: Accelerator, head: nn.Module, model: CachedModel, recipe: Recipe) -> None:
        self.accelerator, self.head, self.target, self.recipe = accelerator, head, model, recipe
        self.taps, self.step = taps_of(head, model.network), 0
        self.weights = [weight for weight in head.parameters() if weight.requires_grad]
        if not self.weights:
            raise ValueError(f"{type(head).__name__} has no weights that learn")
        optimiser = torch.optim.AdamW(self.weights, recipe.rate, recipe.betas, weight_decay=recipe.weight_decay)
        self._losses = Losses(head, FrozenTarget(model.network))
        self.model, self.optimiser = accelerator.prepare(self._losses, optimiser)

    @property
    def usable(self) -> nn.Module:
        """A copy as it is used later: in the target's type, and without what helps only to learn."""
        return copy.deepcopy(self.head).to(self.target.network.dtype).eval()

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        done = (self.step + 1) / (self.recipe.steps + 1)
        return self.recipe.rate * rate_share(done, self.recipe.warmup, self.recipe.decay)

    def advance(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One step; mean losses over batches and processes, and the gradient's norm.

        Raises:
            DivergedError: something is not finite.
        """
        losses = self.learn(batches)
        norm = float(self.accelerator.clip_grad_norm_(self.weights, self.recipe.clip or math.inf))
        if not math.isfinite(norm):
            raise DivergedError(f"step {self.step + 1}: the gradient's norm is {norm}; losses {losses}")
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return {**losses, "gradient_norm": norm}

    def learn(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Gradients of batches, added to the weights'; mean losses. Raises DivergedError as ``advance`` does."""
        self.head.train()
        sums: dict[str, float] = {}
        for index, batch in enumerate(batches):
            last = index + 1 == len(batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                found = self.model(batch.states(self.target, self.taps), batch.tokens, batch.wanted)
                for name, value in self.shared(found).items():
                    if not math.isfinite(value):
                        where = f"step {self.step + 1}, batch {index + 1} of {len(batches)}"
                        raise DivergedError(f"{where}: the loss {name!r} is {value}")
                    sums[name] = sums.get(name, 0.0) + value / len(batches)
                self.accelerator.backward(sum(found.values()) / len(batches))
        return sums

    def shared(self, losses: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over processes, so that all of them stop where one has to."""
        stacked = torch.stack([loss.detach().float() for loss in losses.values()])
        return dict(zip(losses, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))

    def losses(self, batch: Batch) -> dict[str, float]:
        """Of a batch, in this process alone; nothing learns from it."""
        with self.aside(), torch.no_grad():
            self.head.eval()
            found = self._losses(batch.states(self.target, self.taps), batch.tokens, batch.wanted)
        return {name: float(loss) for name, loss in found.items()}

    def rehearse(self, batch: Batch) -> None:
        """Gradients of a batch, thrown away: what it takes is then known."""
        with self.aside():
            self.learn([batch])
        self.optimiser.zero_grad()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is drawn in here is not missing in the training."""
        device = self.target.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield

    def content(self) -> dict[str, Any]:
        """All that the next step depends on, of every process. All of them must ask."""
        return {
            "step": self.step,
            "processes": self.accelerator.num_processes,
            "weights": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "noise": gather_object([noise_of(self.target.device)]),
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError where other processes, or another head, have come so far."""
        processes = self.accelerator.num_processes
        if content["processes"] != processes:
            raise ValueError(
                f"the checkpoint is of {content['processes']} processes, but there are {processes}: start as "
                "many, or the result would be another"
            )
        try:
            self.head.load_state_dict(content["weights"])
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another head: {error}") from error
        self.optimiser.load_state_dict(content["optimiser"])
        set_noise(self.target.device, content["noise"][self.accelerator.process_index])
        self.step = content["step"]


def noise_of(device: torch.device) -> dict[str, Tensor]:
    """The state of PyTorch's generators."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_noise(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Set PyTorch's generators to a state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
