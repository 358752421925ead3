"""A stand-in for the tokenizer of a model that has none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BYTES = 256
PLACEHOLDER = b"_"


@dataclass(frozen=True)
class Encoding:
    """Token ids, under the name that Hugging Face gives them."""

    input_ids: list[int]


class ByteTokenizer:
    """Text as UTF-8, a token per byte, with those of Hugging Face's methods that are used here.

    After the bytes comes one more token, chosen by the whole text. A synthetic model looks at the last token
    only, and texts mostly end alike: without it they would all be continued from a handful of places.

    Args:
        size: V, ids there are. The first 256 stand for bytes, the others for no text.
    """

    pad_token_id: int | None = None
    chat_template: str | None = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, text: str) -> Encoding:
        """Ids of a text."""
        data = text.encode()
        place = int.from_bytes(hashlib.sha256(data).digest()[:8], "big") % self.size
        return Encoding([*data, place])

    def decode(self, tokens: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids; an underscore for each that stands for none. There are no special ones."""
        data = b"".join(bytes([token]) if token < BYTES else PLACEHOLDER for token in tokens)
        return data.decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        """Name of every id."""
        return self._vocabulary

    def apply_chat_template(self, messages: Any, **_: Any) -> list[int]:
        """Raises ValueError: a synthetic model knows no chat."""
        raise ValueError("a synthetic model has no chat template: pass text or token ids")

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return {f"<{token}>": token for token in range(self.size)}
