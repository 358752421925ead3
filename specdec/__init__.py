"""Speculative decoding: a target verifies token trees that a drafter proposes, without changing what it says."""

from specdec.acceptance import Block, Coupled, Match, Ratio, Typical
from specdec.generate import Result, generate
from specdec.metrics import Metrics
from specdec.noise import Noise
from specdec.sampling import Sampling
from specdec.trace import Trace
from specdec.types import Advice, Context, Draft, Tap, Top, Tops, Verdict, Want

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "Block",
    "Context",
    "Coupled",
    "Draft",
    "Match",
    "Metrics",
    "Noise",
    "Ratio",
    "Result",
    "Sampling",
    "Tap",
    "Top",
    "Tops",
    "Trace",
    "Typical",
    "Verdict",
    "Want",
    "generate",
]
