"""Omega and coverage by position of the window, from 0 (behind the last committed token) to the bonus position.

Only places that decoding reached are counted: those up to the one behind the last accepted token.

P reached places, K named tokens, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

KAPPAS = (1, 2, 4, 8, 16, 32)
TOLD = 8  # kappa of the text, or the next smaller one


@dataclass
class Omega:
    """The final law's mass on one source's likeliest tokens: sums by position, then by kappa.

    Attributes:
        mass: sums of mass.
        places: how many there were.
    """

    mass: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    places: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, final_PV: Tensor, tokens_PK: Tensor) -> None:
        """Take in one window's places in order: the final law's probabilities, and tokens, the likeliest first."""
        mass_PK = final_PV.gather(-1, tokens_PK).double().cumsum(-1)
        for position, row in enumerate(mass_PK.tolist()):
            self.places[position] += 1
            for kappa in KAPPAS:
                if kappa <= len(row):
                    self.mass[position][kappa] += row[kappa - 1]

    def as_dict(self) -> dict[str, Any]:
        """Means, ready for JSON."""
        means = {
            position: {kappa: mass / self.places[position] for kappa, mass in sums.items()}
            for position, sums in sorted(self.mass.items())
        }
        return {"places": dict(sorted(self.places.items())), "mass": means}


def lines(hits: dict[str, Any]) -> Iterator[str]:
    """A table for the terminal, of what ``experiments.outcome_hits`` found of one drafter."""
    positions, length = list(hits["outcomes_by_position"]), hits["length"]
    yield f"first {hits['drafter_layer']} layers draft {length} tokens, {hits['rounds']} outcomes, by position:"
    yield line("", [f"{position}" if position < length else "bonus" for position in positions])
    yield line("outcomes", [str(count) for count in hits["outcomes_by_position"].values()])
    for source, omega in hits["omega"].items():
        named = [(position, omega["mass"].get(position, {})) for position in positions]
        kappa = max((kappa for _, mass in named for kappa in mass if kappa <= TOLD), default=TOLD)
        yield line(f"Ω_{kappa}, {source}", [share(mass.get(kappa)) for _, mass in named])
    for arm in hits["arms"]:
        cells = [share(arm["coverage_by_position"][position]) for position in positions]
        yield line(f"coverage, {arm['forecast']}, {arm['branches']} branches", cells)


def line(name: str, cells: list[str]) -> str:
    """A name and its numbers."""
    return f"  {name:<48}" + "".join(f"{cell:>7}" for cell in cells)


def share(value: float | None) -> str:
    """Two decimals."""
    return "–" if value is None else f"{value:.2f}"
