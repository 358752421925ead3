"""Does a network give the same answer through our attention kernel? If not, PyTorch's attention runs it."""

from __future__ import annotations

import logging

import torch

from specdec.runtime.fuse import PROBE, tolerance
from specdec.runtime.model import CachedModel

log = logging.getLogger(__name__)


def prove(model: CachedModel) -> None:
    """Let a network that is not run by the fused kernels do without our attention if that fails or is wrong."""
    network = model.network
    if not network.brief or network.lean is not None:  # whose proof was more than this
        return
    try:
        gap = distance(model)
    except Exception as error:  # whatever a compiler makes of shapes that it has not met
        log.debug("", exc_info=error)
        gap, reason = float("inf"), str(error).split("\n")[0]
    else:
        reason = f"its logits differ by {gap:.2g}"
    if not gap <= tolerance(network.dtype):  # nor is anything that is no number
        network.brief = False
        log.warning("%s runs with PyTorch's attention: %s", type(network.module).__name__, reason)


@torch.inference_mode()
def distance(model: CachedModel) -> float:
    """How far the logits of a replayed round would be from those of a direct one, relative to their size."""
    tokens_1S = (torch.arange(PROBE + 1, device=model.device) * 7919 % model.vocab_size)[None]
    lengths_1 = torch.ones(1, dtype=torch.int64, device=model.device)
    chain = tokens_1S[:, 1:], torch.arange(-1, PROBE - 1, device=model.device)[None]
    answers = []
    for behind in (None, 1):  # from the second time on shapes do not depend on the rows
        model.begin(1, PROBE + 1, stay=True)
        model.advance(tokens_1S, lengths_1)
        answers.append(model.advance(tokens_1S, lengths_1, chain, behind=behind, chain=True).logits.float())
    model.begin(0, 0)
    return float((answers[1] - answers[0]).norm() / answers[0].norm())
