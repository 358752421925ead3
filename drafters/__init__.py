"""Ways to propose tokens, one method per file."""

from drafters.early_exit import EarlyExitDrafter
from drafters.lookahead import LookaheadDrafter
from drafters.model import ModelDrafter
from drafters.ngram import NgramDrafter
from drafters.null import NullDrafter
from drafters.recycling import RecyclingDrafter
from drafters.suffix import SuffixDrafter
from drafters.synthetic import SyntheticDrafter

__all__ = [
    "EarlyExitDrafter",
    "LookaheadDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "NullDrafter",
    "RecyclingDrafter",
    "SuffixDrafter",
    "SyntheticDrafter",
]
