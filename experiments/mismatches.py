"""Replies that should be plain decoding's token for token and are not, and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.arms import PLAIN
from experiments.journal import Entry

log = logging.getLogger(__name__)

UNKNOWN = "not triaged"
BUG = "bug"
# (prompt, plain decoding's tokens, the other tokens) -> specdec.triage's finding
Triager = Callable[[list[int], list[int], list[int]], Any]


@dataclass(frozen=True)
class Mismatch:
    """A reply that differs from plain decoding's. ``finding`` has at least the ``kind``."""

    id: str
    turn: int
    arm: str
    finding: dict[str, Any]

    @property
    def kind(self) -> str:
        """ "tie-flip", "drift", "bug", or "not triaged"."""
        return str(self.finding["kind"])


def find(entries: Iterable[Entry], arms: Sequence[str]) -> list[tuple[Entry, Entry]]:
    """Pairs of plain decoding's reply and another arm's that differs."""
    entries = list(entries)
    plain = {(entry.id, entry.turn): entry for entry in entries if entry.arm == PLAIN}
    pairs = [(plain[entry.id, entry.turn], entry) for entry in entries if entry.arm in arms]
    return [(base, entry) for base, entry in pairs if base.tokens != entry.tokens]


def explain(
    pairs: Sequence[tuple[Entry, Entry]],
    prompt_of: Callable[[Entry], list[int]],
    triage: Triager | None,
    exact: Collection[str] = (),
) -> list[Mismatch]:
    """What each pair's difference is due to.

    Args:
        pairs: from ``find``.
        prompt_of: the token ids that an entry answers.
        triage: None where differences cannot be triaged: it knows greedy decoding only.
        exact: arms that round as plain decoding does. What differs there is a bug, however close two tokens were.
    """
    found = [(other, _finding(prompt_of, base, other, triage)) for base, other in pairs]
    return [
        Mismatch(other.id, other.turn, other.arm, finding | ({"kind": BUG} if other.arm in exact else {}))
        for other, finding in found
    ]


def _finding(
    prompt_of: Callable[[Entry], list[int]], base: Entry, other: Entry, triage: Triager | None
) -> dict[str, Any]:
    if triage is None:
        return {"kind": UNKNOWN}
    try:
        found = triage(prompt_of(other), base.tokens, other.tokens)
        return dict(found.as_dict())
    except (RuntimeError, ValueError) as error:  # a replay may not fit the memory; the results still count
        log.warning("%s, %s: the difference from plain could not be triaged: %s", other.id, other.arm, error)
        return {"kind": UNKNOWN, "error": str(error)}


def describe(mismatches: Sequence[Mismatch], compared: int) -> str:
    """One line: how many replies differ, of how many, by kind."""
    if not mismatches:
        return f"all {compared} replies are plain decoding's, token for token"
    kinds = Counter(mismatch.kind for mismatch in mismatches)
    listed = ", ".join(f"{count} {plural(kind, count)}" for kind, count in kinds.most_common())
    advice = "; dtype=float32 tells rounding from a bug" if UNKNOWN in kinds else ""
    return f"{len(mismatches)} of {compared} replies differ from plain decoding's: {listed}{advice}"


def plural(kind: str, count: int) -> str:
    """The kind as it is counted."""
    return kind + "s" if count > 1 and kind in ("tie-flip", BUG) else kind
