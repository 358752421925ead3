"""Text that a target itself writes, and what its layers say at every place of it.

B rows, S token slots, T taps, P places, X hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import specdec
from drafters import NullDrafter
from experiments.prompt import Prompt
from specdec import Sampling, Tap
from specdec.prompts import encode
from specdec.runtime import CachedModel
from verifiers import FullVerifier


@dataclass(frozen=True)
class Text:
    """Tokens of a prompt and of the target's reply.

    Attributes:
        tokens: all of them.
        prompt: how many are the prompt's.
    """

    tokens: tuple[int, ...]
    prompt: int


def ids_of(prompt: Prompt, verifier: FullVerifier) -> list[int]:
    """Token ids of a prompt's first turn, through the chat template if it is meant for one and there is one."""
    said = prompt.turns[0]
    chat = prompt.chat and getattr(verifier.tokenizer, "chat_template", None)
    return encode([{"role": "user", "content": said}] if chat else said, verifier.tokenizer)[0][0]


def replies(
    verifier: FullVerifier,
    prompts: Sequence[list[int]],
    new_tokens: int,
    rows: int,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[list[Text]]:
    """The target's replies, ``rows`` prompts at a time.

    Args:
        verifier: runs the target.
        prompts: token ids.
        new_tokens: of a reply, at most.
        rows: B.
        sampling: the law to decode under, greedy if None.
        seed: of the first rows; later ones take later seeds.
    """
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        result = specdec.generate(verifier, NullDrafter(), some, new_tokens, sampling=sampling, seed=seed + start)
        yield [Text((*prompt, *result.row(b)), len(prompt)) for b, prompt in enumerate(some)]


def padded(texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, S], padded with 0 at the end, and lengths int64 [B]."""
    counts = [len(text.tokens) for text in texts]
    tokens_BS = torch.zeros(len(texts), max(counts), dtype=torch.int64)
    for row, text in zip(tokens_BS, texts, strict=True):
        row[: len(text.tokens)] = torch.tensor(text.tokens)
    return tokens_BS, torch.tensor(counts)


@torch.inference_mode()
def states(model: CachedModel, texts: Sequence[Text], layers: Sequence[int]) -> Tensor:
    """[T, P, X]: the states behind some layers at the places whose law decided a token of a reply, in order.

    One forward over all texts, whatever the layers.
    """
    tokens_BS, lengths_B = (part.to(model.device) for part in padded(texts))
    taps = tuple(Tap(layer) for layer in layers)
    model.begin(*tokens_BS.shape)
    scores = model.advance(tokens_BS, lengths_B, taps=taps)
    assert scores.positions is not None
    first_B1 = torch.tensor([[text.prompt - 1] for text in texts], device=model.device)
    wanted_BS = (scores.positions >= first_B1) & (scores.positions <= lengths_B[:, None] - 2)
    return torch.stack([scores.states[tap][wanted_BS] for tap in taps])
