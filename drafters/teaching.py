"""What heads on the target's last state learn from: text, read by the target, with every token known.

B rows, S token slots, X hidden size, V vocabulary, P places that count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from drafters.heads import Heads
from specdec.runtime.huggingface import Network
from specdec.types import Tap


@dataclass(frozen=True)
class Lesson:
    """What one head says where its tokens are known.

    Attributes:
        level: which head.
        logits: [P, V], in float32.
        tokens: int64 [P], those that followed.
        states: [P, X], behind the target's norm: what its own head makes of one is the law of that token.
    """

    level: int
    logits: Tensor
    tokens: Tensor
    states: Tensor

    def cross_entropy(self) -> Tensor:
        """Mean over the places, of the tokens; 0 where there is no place."""
        return cross_entropy(self.logits, self.tokens, reduction="sum") / max(len(self.tokens), 1)

    def distillation(self, target: Network) -> Tensor:
        """Mean over the places, of the target's laws: the divergence from them, plus a constant."""
        with torch.no_grad():
            own_PV = target.head(self.states[None])[0]
        return soft_cross_entropy(self.logits, own_PV)


def soft_cross_entropy(said_PV: Tensor, own_PV: Tensor) -> Tensor:
    """Mean over the places of the cross-entropy between two laws, given by their logits; 0 without a place.

    Args:
        said_PV: what is to learn.
        own_PV: the target's, through which no gradient passes.
    """
    law_PV = own_PV.detach().float().softmax(-1)
    return cross_entropy(said_PV.float(), law_PV, reduction="sum") / max(1, len(said_PV))


def lessons(
    heads: Heads,
    states: Mapping[Tap, Tensor],
    tokens_BS: Tensor,
    wanted_BS: Tensor,
    target: Network,
    levels: int,
) -> Iterator[Lesson]:
    """Every head with all tokens before its own known, as in drafting what was accepted (teacher forcing).

    From the state of place s head k says token s + k + 2, which counts where place s + k + 1 is wanted.

    Args:
        heads: which.
        states: what taps of the target's forward gave, its last layer among them, [B, S, X].
        tokens_BS: what the target read.
        wanted_BS: bool, places whose next token counts.
        target: read only; its weights should not ask for gradients.
        levels: how many heads.
    """
    with torch.no_grad():
        state_BSX = target.norm(states[Tap(target.depth)]).clone()
    memory_BSY, slots = heads.start(state_BSX), tokens_BS.shape[1]
    index_S = torch.arange(slots, device=tokens_BS.device)
    for level in range(levels):
        ahead = -1 - level
        memory_BSY = heads.read(level, memory_BSY, tokens_BS.roll(ahead, 1), target)
        counts_BS = wanted_BS.roll(ahead, 1) & (index_S < slots + ahead - 1)
        logits_PV = heads.say(level, memory_BSY[counts_BS][None], target)[0]
        following_P, own_PX = tokens_BS.roll(ahead - 1, 1)[counts_BS], state_BSX.roll(ahead, 1)[counts_BS]
        yield Lesson(level, logits_PV.float(), following_P, own_PX)
