"""The α-β model of collectives, for models sharded over several devices (arXiv 2510.13161)."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from specdec.planner.checks import check_cost, check_count


@dataclass(frozen=True)
class Link:
    """What connects the devices that share a model.

    Args:
        latency: the model's α, milliseconds per doubling of the devices that take part.
        per_byte: the model's β, milliseconds per byte.

    Raises:
        ValueError: a negative or infinite cost.
    """

    latency: float
    per_byte: float

    def __post_init__(self) -> None:
        check_cost("latency", self.latency)
        check_cost("per_byte", self.per_byte)

    def allreduce(self, message: float, devices: int) -> float:
        """Milliseconds to sum ``message`` bytes over devices: α·log2(G) + β·M; nothing for one device.

        Raises:
            ValueError: no device, or a negative message.
        """
        check_count("devices", devices, least=1)
        check_cost("message", message)
        return self.latency * log2(devices) + self.per_byte * message if devices > 1 else 0.0

    def target_step(self, layers: int, message: float, devices: int) -> float:
        """Milliseconds of collectives in one forward of a sharded target: two per layer, 2N.

        Args:
            layers: N.
            message: bytes that each carries: tokens of the step x width of the state x bytes of a number.
            devices: G.
        """
        check_count("layers", layers, least=1)
        return 2 * layers * self.allreduce(message, devices)

    def rollout(self, steps: int, message: float, devices: int) -> float:
        """Milliseconds of collectives in J steps of a drafter that meets twice a step, 2J.

        That is Mirror-SD's drafter of two segments, which meets at the segment boundary and at the output.

        Args:
            steps: J.
            message: bytes that each carries: branches x width of the state x bytes of a number.
            devices: G.
        """
        check_count("steps", steps)
        return 2 * steps * self.allreduce(message, devices)
