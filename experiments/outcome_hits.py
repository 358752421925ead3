"""Which forecasts had prepared for what came true, all with the same number of branches.

A drafter and the target take turns as ever. Before every commit each forecast is asked about the same window, with
the same knowledge, and it is noted whether the outcome (accepted node, token behind it) is among its branches.
What forecasts say changes nothing, so all of them see the same rounds.

B = 1 row, N draft nodes, M = N + 1, W tokens of one forward, X hidden size, P reached places, K named tokens,
V vocabulary.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

import specdec
from drafters import EarlyExitDrafter
from experiments.omega import KAPPAS, Omega
from specdec import Draft, Tap, Verdict, Want
from specdec.exit import Exit, Hint
from specdec.forecast import Blend, DraftTopK, EarlyExitTopK
from specdec.hypotheses import Candidates
from specdec.protocols import BranchingDrafter, Forecast
from specdec.sequences import Sequences
from specdec.translator import Translator
from verifiers import FullVerifier
from verifiers.full import FullEvidence

BLENDED = " + drafter"  # behind the name of an exit
Arms = Mapping[tuple[str, int], Forecast]  # by name and number of branches


@dataclass(frozen=True)
class Round:
    """What became of a window, and who had foreseen it.

    Attributes:
        window: depth of the draft.
        accepted: of them.
        hits: by forecast.
    """

    window: int
    accepted: int
    hits: dict[tuple[str, int], bool]


class Witness(FullVerifier):
    """A verifier that asks forecasts about every window before its outcome is committed.

    Args:
        verifier: whose target it runs, eagerly.
        drafter: who makes the windows.
        arms: whom to ask.

    Attributes:
        rounds: what became of every window.
        omega: what the drafter and every exit know of the target's law, by name.
    """

    def __init__(self, verifier: FullVerifier, drafter: BranchingDrafter, arms: Arms) -> None:
        super().__init__(verifier.model, verifier.tokenizer)
        self.end_tokens = verifier.end_tokens
        self.rounds: list[Round] = []
        self._drafter, self._arms = drafter, arms
        self.omega: dict[str, Omega] = defaultdict(Omega)
        self._seen: dict[Tap, Tensor] = {}

    def begin(self, seq: Sequences, wants: tuple[Want, ...] = (), exit: Exit | None = None) -> None:
        """Read the target behind every exit that a forecast listens to."""
        exits = [forecast.exit for forecast in self._arms.values() if forecast.exit is not None]
        super().begin(seq, tuple({Tap(exit.of(self.model)) for exit in exits}))

    def score(self, seq: Sequences, draft: Draft, hint: Hint | None = None) -> FullEvidence:
        """Keep the states."""
        evidence = super().score(seq, draft, hint)
        self._seen, self._final = evidence.scores.states, seq.sampling.soft(evidence.scores.logits)
        return evidence

    def commit(self, seq: Sequences, draft: Draft, verdict: Verdict) -> Sequences:
        """Ask, then commit. The last round of a row needs no next window, nor the first one a forecast."""
        hits, named = self._asked(seq, draft, verdict) if draft.size else ({}, {})
        after = super().commit(seq, draft, verdict)
        if hits and not bool(after.ended.all()):
            accepted = int(verdict.accepted[0])
            self.rounds.append(Round(int(draft.depths.max()), accepted, hits))
            reached_P = pad(verdict.path[0, :accepted] + 1, (1, 0))  # the root's place is 0
            for source, tokens_MK in named.items():
                self.omega[source].add(self._final[0, reached_P].exp(), tokens_MK[reached_P])
        return after

    def _asked(
        self, seq: Sequences, draft: Draft, verdict: Verdict
    ) -> tuple[dict[tuple[str, int], bool], dict[str, Tensor]]:
        """Who hits, and the tokens [M, K] that every source names."""
        own_BMV = seq.sampling.soft(self._drafter.look(seq.context(), draft))
        heard: dict[Exit, Candidates] = {}
        hits, named = {}, {"drafter": own_BMV[0].topk(min(max(KAPPAS), own_BMV.shape[-1]), -1).indices}
        for name, forecast in self._arms.items():
            exit = forecast.exit
            if exit is not None and exit not in heard:
                heard[exit] = self._said(exit, seq, draft)
                named[name[0].removesuffix(BLENDED)] = heard[exit].tokens[0]
            outcomes = forecast(draft, own_BMV, None if exit is None else heard[exit])
            right = (outcomes.nodes == verdict.end[:, None]) & (outcomes.tokens == verdict.tokens[:, None])
            hits[name] = bool(right.any())
        return hits, named

    def _said(self, exit: Exit, seq: Sequences, draft: Draft) -> Candidates:
        state_BMX = self._seen[Tap(exit.of(self.model))][:, -(draft.size + 1) :]
        return exit.read(self.model.network, state_BMX, draft, seq.sampling)


def forecasts(
    exits: Mapping[int, Translator], layers: Iterable[int], budgets: Iterable[int], top: int, weight: float
) -> dict[tuple[str, int], Forecast]:
    """The drafter's own fan-out, every exit raw and trained, and each of them blended with the former."""
    heard = {f"exit {layer} raw": Exit(layer, top) for layer in layers}
    heard |= {f"exit {layer} trained": Exit(layer, top, exits[layer]) for layer in layers if layer in exits}
    arms: dict[tuple[str, int], Forecast] = {}
    for budget in budgets:
        arms["drafter", budget] = DraftTopK(top, budget)
        for name, exit in heard.items():
            arms[name, budget] = EarlyExitTopK(exit, budget)
            arms[name + BLENDED, budget] = Blend(exit, top, budget, weight)
    return arms


def hits_of(
    verifier: FullVerifier,
    prompts: Sequence[list[int]],
    exits: Mapping[int, Translator],
    layer: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Hit rates of all forecasts while the target's first layers draft, ready for JSON."""
    drafter = EarlyExitDrafter(layer, options.length)
    arms = forecasts(exits, options.exits, options.budgets, options.top, options.weight)
    witness = Witness(verifier, drafter, arms)
    for prompt in prompts:
        specdec.generate(witness, drafter, prompt, options.new_tokens)
    omega = {source: found.as_dict() for source, found in witness.omega.items()}
    what = {"drafter_layer": layer, "length": options.length, "top": options.top}
    return {**what, **summary(witness.rounds), "omega": omega}


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Hit rates over all rounds, over those with a rejection, and by accepted length.

    Coverage is the share of outcomes that were prepared by the position at which they fell, the bonus position
    behind a window that was accepted whole included; ``hit_by_accepted`` is of rejections alone.
    """
    refused = [one for one in rounds if one.accepted < one.window]
    lengths = sorted({one.accepted for one in refused})
    fell = {n: [one for one in rounds if one.accepted == n] for n in range(deepest(rounds) + 1)}
    names = rounds[0].hits if rounds else {}
    return {
        "rounds": len(rounds),
        "rejections": len(refused),
        "mean_accepted": sum(one.accepted for one in rounds) / max(1, len(rounds)),
        "rejections_by_accepted": {n: sum(one.accepted == n for one in refused) for n in lengths},
        "outcomes_by_position": {n: len(some) for n, some in fell.items()},
        "arms": [
            {
                "forecast": name,
                "branches": branches,
                "hit": rate(rounds, (name, branches)),
                "hit_given_rejection": rate(refused, (name, branches)),
                "hit_by_accepted": {
                    n: rate([one for one in refused if one.accepted == n], (name, branches)) for n in lengths
                },
                "coverage_by_position": {n: rate(some, (name, branches)) for n, some in fell.items()},
            }
            for name, branches in names
        ],
    }


def deepest(rounds: Sequence[Round]) -> int:
    """The bonus position of the deepest window; -1 without rounds."""
    return max((one.window for one in rounds), default=-1)


def rate(rounds: Sequence[Round], name: tuple[str, int]) -> float | None:
    """Share of rounds that a forecast had prepared for, None without a round."""
    return sum(one.hits[name] for one in rounds) / len(rounds) if rounds else None
