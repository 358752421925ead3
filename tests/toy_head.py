"""The smallest head that can learn: a linear map from the last state to the token two ahead.

B rows, S token slots, K tapped tokens.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from specdec import Context, Draft, Noise, Tap
from specdec.protocols import Verifier
from specdec.runtime.huggingface import Network
from specdec.sequences import Sequences

KILL = "TOY_KILL_AT"  # a call of ``losses`` in which the process is killed
REHEARSALS = 2  # calls before the first step


class ToyHead(nn.Module):
    """Learns by cross-entropy.

    Args:
        target: gives the sizes.
        dropout: of the state, so that what was drawn matters.
        layer: reads there too, for nothing.
        nan_at: the step from which on the loss is no number.
    """

    def __init__(
        self, target: Network, dropout: float = 0.0, layer: int | None = None, nan_at: int | None = None
    ) -> None:
        super().__init__()
        self.depth, self.layer, self.nan_at, self.calls = target.depth, layer, nan_at, 0
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(target.head_weight.shape[1], target.vocab_size)

    def taps(self, depth: int) -> tuple[Tap, ...]:
        return (Tap(depth if self.layer is None else self.layer),)

    def losses(
        self, states: Mapping[Tap, Tensor], tokens_BS: Tensor, wanted_BS: Tensor, target: Network
    ) -> dict[str, Tensor]:
        step = self.count()
        counts_BS = wanted_BS[:, :-1] & wanted_BS[:, 1:]
        counts_BS, ahead_BS = counts_BS[:, : tokens_BS.shape[1] - 2], tokens_BS[:, 2:]
        logits_BSV = self.linear(self.dropout(normal(states[Tap(target.depth)])))[:, :-2]
        loss = nn.functional.cross_entropy(logits_BSV[counts_BS], ahead_BS[counts_BS], reduction="sum")
        loss = loss / counts_BS.sum().clamp(min=1)
        return {"ahead": loss * torch.nan if self.nan_at is not None and step >= self.nan_at else loss}

    def count(self) -> int:
        """The step that this call belongs to, of one batch each."""
        self.calls += self.training
        if os.environ.get(KILL) == str(self.calls - REHEARSALS):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.calls - REHEARSALS

    def save(self, path: Path) -> None:
        save_file(self.state_dict(), path / "model.safetensors")


class ToyDrafter:
    """Drafts one token."""

    static, size = False, 1

    def __init__(self, head: ToyHead) -> None:
        self.head, self.wants = head, (Tap(head.depth),)

    def begin(self, target: Verifier, seq: Sequences) -> None:
        pass

    def draft(self, context: Context, noise: Noise) -> Draft:
        assert context.advice is not None
        last_B = context.advice.positions.argmax(1)
        state_BKX = context.advice.states[self.wants[0]]
        state_BX = state_BKX[torch.arange(len(last_B)), last_B]
        token_B1 = self.head.linear(normal(state_BX)).argmax(-1)[:, None]
        return Draft.chain(token_B1, context.lengths, torch.ones_like(context.lengths))


def normal(state: Tensor) -> Tensor:
    """States of any size alike."""
    return nn.functional.rms_norm(state, state.shape[-1:])
