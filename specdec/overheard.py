"""A target with a listener."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specdec.protocols import Evidence, Verifier
from specdec.sequences import Sequences
from specdec.types import Draft, Verdict


class Overheard:
    """Does what its verifier does, and lets a listener see the evidence beside the verdict.

    Args:
        verifier: runs the target.
        listener: takes both of every round, before the verdict is carried out.
    """

    def __init__(self, verifier: Verifier, listener: Callable[[Evidence, Verdict], None]) -> None:
        self._verifier, self._listener = verifier, listener
        self._evidence: Evidence | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._verifier, name)

    def score(self, *arguments: Any) -> Evidence:
        """See ``Verifier``."""
        self._evidence = evidence = self._verifier.score(*arguments)
        return evidence

    def commit(self, seq: Sequences, draft: Draft, verdict: Verdict) -> Sequences:
        """See ``Verifier``."""
        evidence, self._evidence = self._evidence, None
        if evidence is not None:
            self._listener(evidence, verdict)
        return self._verifier.commit(seq, draft, verdict)
