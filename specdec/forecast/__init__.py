"""Which outcomes of a window deserve a prepared draft: one published system per file."""

from specdec.forecast.all_accepted import AllAccepted
from specdec.forecast.blend import Blend
from specdec.forecast.draft_topk import DraftTopK
from specdec.forecast.early_exit_topk import EarlyExitTopK

__all__ = ["AllAccepted", "Blend", "DraftTopK", "EarlyExitTopK"]
