"""What a head learns from: the target's replies, written once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from accelerate import Accelerator
from rich.console import Console

from experiments.progress import bar, say
from experiments.replies import Text
from experiments.reply_store import ReplyStore
from experiments.requests import Request, own, requests
from experiments.train_data import learnable
from experiments.writing import Portion, Writing
from verifiers import FullVerifier


@dataclass(frozen=True)
class Texts:
    """Prompts with the target's replies.

    Attributes:
        train: to learn from.
        held: of other prompts.
    """

    train: list[Text]
    held: list[Text]


def asked(files: Sequence[str], count: int, seed: int) -> list[Request]:
    """What the target is asked: prompts of files, or the project's own where there are none, and library code."""
    further = () if files else (own(seed),)
    return list(requests([Path(file).expanduser() for file in files], count, seed, further))


def fitting(verifier: FullVerifier, how: Writing) -> Writing:
    """The same with prompts so short that the target's positions suffice for the reply.

    Raises:
        ValueError: they do not suffice for any.
    """
    limit = verifier.model.network.max_positions
    if limit is None:
        return how
    if limit <= how.new_tokens:
        raise ValueError(f"new_tokens={how.new_tokens} leaves no prompt: the target has {limit} positions")
    return Writing(how.new_tokens, how.rows, min(how.longest, limit - how.new_tokens), how.temperature, how.seed)


def collect(store: ReplyStore, parts: Sequence[Portion], accelerator: Accelerator, console: Console) -> Texts:
    """The replies to all portions; each process writes its share of those that are not there yet.

    Raises:
        ValueError: nothing is left to learn from, or to hold out.
    """
    mine = [part for part in parts[accelerator.process_index :: accelerator.num_processes] if part not in store]
    if mine:
        with bar(console, "writing replies", len(mine)) as progress:
            for number, part in enumerate(mine):
                start = perf_counter()
                store.texts(part)
                if not number:  # the longest prompts: the others take less
                    minutes = (perf_counter() - start) * len(mine) / 60
                    say(console, f"writing replies: at most {minutes:.1f} minutes; kept in {store.folder}")
                progress(1)
    accelerator.wait_for_everyone()
    sides: dict[bool, list[Text]] = {False: [], True: []}
    for part in parts:
        sides[part.held] += store.texts(part)
    found = Texts(*(learnable(sides[held]) for held in (False, True)))
    for name, texts in (("learn from", found.train), ("hold out", found.held)):
        if not texts:
            raise ValueError(f"no reply is left to {name}: ask for more replies, or for longer prompts (longest)")
    dropped = sum(map(len, sides.values())) - len(found.train) - len(found.held)
    say(console, f"{len(found.train)} replies to learn from, {len(found.held)} held out, {dropped} too short")
    return found
