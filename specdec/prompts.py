"""From what a user passes to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Sequence[Message] | Tensor


def encode(prompts: Prompt | Sequence[Prompt], tokenizer: Any | None) -> tuple[list[list[int]], bool]:
    """Token ids of every row, and whether one prompt was passed rather than a list of them.

    A string is continued as it stands. A list of messages ({"role": …, "content": …}) goes through the
    tokenizer's chat template. Token ids are a list or a 1-D tensor per row; a 2-D tensor is one row each.

    Raises:
        ValueError: an empty prompt, or text without a tokenizer.
        TypeError: something that is no prompt.
    """
    if isinstance(prompts, Tensor) and prompts.dim() > 1:
        prompts = list(prompts)
    single = isinstance(prompts, str | Tensor) or (len(prompts) > 0 and isinstance(prompts[0], int | Mapping))
    rows: Any = [prompts] if single else prompts
    if len(rows) == 0:
        raise ValueError("no prompt was passed")
    return [_row(prompt, tokenizer) for prompt in rows], single


def _row(prompt: Prompt, tokenizer: Any | None) -> list[int]:
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    if len(prompt) == 0:
        raise ValueError("a prompt is empty: pass at least one token of context")
    if isinstance(prompt, str):
        return list(_need(tokenizer)(prompt).input_ids)
    if isinstance(prompt[0], Mapping):
        return list(
            _need(tokenizer).apply_chat_template(
                list(prompt), tokenize=True, add_generation_prompt=True, return_dict=False
            )
        )
    if all(isinstance(token, int) for token in prompt):
        return [int(token) for token in prompt]  # type: ignore[arg-type]
    raise TypeError(f"a prompt is text, messages or token ids, not {type(prompt[0]).__name__}")


def _need(tokenizer: Any | None) -> Any:
    if tokenizer is None:
        raise ValueError("text needs a tokenizer: pass tokenizer= to the verifier, or pass token ids")
    return tokenizer
