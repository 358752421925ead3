"""What the planner asks of the numbers it is given."""

from __future__ import annotations

from math import isfinite


def check_rate(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is a probability."""
    if not 0 <= value <= 1:
        raise ValueError(
            f"{name} must be a probability in [0, 1], not {value!r}: pass accepted / tested, not percent"
        )


def check_cost(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` is a finite cost of at least 0."""
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite cost of at least 0, not {value!r}: measure it again")


def check_count(name: str, value: int, least: int = 0) -> None:
    """Raise a ValueError unless ``value`` is a whole number of at least ``least``."""
    if not isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}: pass another one")
