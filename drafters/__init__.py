"""Ways to propose tokens, one method per file."""

from drafters.eagle import EagleDrafter
from drafters.eagle3 import Eagle3Drafter
from drafters.early_exit import EarlyExitDrafter
from drafters.hydra import HydraDrafter
from drafters.medusa import MedusaDrafter
from drafters.model import ModelDrafter
from drafters.ngram import NgramDrafter
from drafters.null import NullDrafter
from drafters.redrafter import ReDrafter
from drafters.stream import StreamDrafter
from drafters.suffix import SuffixDrafter
from drafters.synthetic import SyntheticDrafter

__all__ = [
    "Eagle3Drafter",
    "EagleDrafter",
    "EarlyExitDrafter",
    "HydraDrafter",
    "MedusaDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "NullDrafter",
    "ReDrafter",
    "StreamDrafter",
    "SuffixDrafter",
    "SyntheticDrafter",
]
