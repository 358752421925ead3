"""Ways to propose tokens, one method per file."""

from drafters.adapter import AdapterDrafter
from drafters.dflash import DFlashDrafter
from drafters.eagle import EagleDrafter
from drafters.eagle3 import Eagle3Drafter
from drafters.early_exit import EarlyExitDrafter
from drafters.hybrid import HybridDrafter
from drafters.hydra import HydraDrafter
from drafters.lookahead import LookaheadDrafter
from drafters.medusa import MedusaDrafter
from drafters.model import ModelDrafter
from drafters.mtp import MTPDrafter
from drafters.ngram import NgramDrafter
from drafters.null import NullDrafter
from drafters.recycling import RecyclingDrafter
from drafters.redrafter import ReDrafter
from drafters.stream import StreamDrafter
from drafters.suffix import SuffixDrafter
from drafters.synthetic import SyntheticDrafter

__all__ = [
    "AdapterDrafter",
    "DFlashDrafter",
    "Eagle3Drafter",
    "EagleDrafter",
    "EarlyExitDrafter",
    "HybridDrafter",
    "HydraDrafter",
    "LookaheadDrafter",
    "MTPDrafter",
    "MedusaDrafter",
    "ModelDrafter",
    "NgramDrafter",
    "NullDrafter",
    "ReDrafter",
    "RecyclingDrafter",
    "StreamDrafter",
    "SuffixDrafter",
    "SyntheticDrafter",
]
