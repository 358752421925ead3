"""Acceptance rules: pure tensor functions (draft, target law, noise) -> verdict, one per file."""

from specdec.acceptance.block import Block
from specdec.acceptance.match import Coupled, Match
from specdec.acceptance.ratio import Ratio
from specdec.acceptance.typical import Typical

__all__ = ["Block", "Coupled", "Match", "Ratio", "Typical"]
