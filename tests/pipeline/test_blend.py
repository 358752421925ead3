"""The blended forecast beside brute force over both sources."""

from __future__ import annotations

import math

import pytest
import torch

from specdec.exit import Exit
from specdec.forecast import Blend, DraftTopK, EarlyExitTopK
from specdec.hypotheses import Candidates
from specdec.types import Draft

VOCABULARY, NODES, TOP = 12, 3, 4


def drawn(seed: int) -> tuple[Draft, torch.Tensor, torch.Tensor]:
    """A chain, and two laws of what follows at its places."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (1, NODES), generator=generator)
    laws = 2 * torch.randn(2, 1, NODES + 1, VOCABULARY, generator=generator)
    own, exit = laws.log_softmax(-1)
    return Draft.chain(tokens, torch.tensor([9]), torch.tensor([NODES])), own, exit


def outcomes(forecast, draft: Draft, own: torch.Tensor, exit: torch.Tensor) -> list[tuple[int, int]]:
    """(accepted tokens, token behind them), the likeliest first."""
    said = forecast(draft, own, Candidates.top(exit, draft, TOP))
    pairs = zip((said.nodes[0] + 1).tolist(), said.tokens[0].tolist(), strict=True)
    return [(accepted, token) for accepted, token in pairs if accepted >= 0]  # without padding


def brute(draft: Draft, own: torch.Tensor, exit: torch.Tensor, weight: float) -> list[tuple[int, int]]:
    """Chances of all outcomes that a source names, one by one."""
    p, q, window = exit[0].exp().tolist(), own[0].exp().tolist(), draft.tokens[0].tolist()
    chances, way = {}, 1.0
    for place in range(NODES + 1):
        named = sorted(range(VOCABULARY), key=lambda t: -p[place][t])[:TOP]
        unnamed = p[place][named[-1]] / math.e
        for token in {*named, *sorted(range(VOCABULARY), key=lambda t: -q[place][t])[:TOP]}:
            mixed = weight * (p[place][token] if token in named else unnamed) + (1 - weight) * q[place][token]
            if place == NODES or token != window[place]:
                chances[place, token] = mixed * way
        if place < NODES:
            way *= weight * p[place][window[place]] + (1 - weight) * q[place][window[place]]
    return sorted(chances, key=lambda outcome: -chances[outcome])


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_by_the_chance_under_the_mixed_law(seed: int, weight: float) -> None:
    draft, own, exit = drawn(seed)
    expected = brute(draft, own, exit, weight)
    assert outcomes(Blend(Exit(2, TOP), TOP, 10, weight), draft, own, exit) == expected[:10]
    assert expected[:10] != brute(draft, own, exit, 1 - weight / 2)[:10]


@pytest.mark.parametrize("seed", range(4))
def test_of_full_weight_a_source_ranks_its_own_tokens_as_it_does_alone(seed: int) -> None:
    draft, own, exit = drawn(seed)
    alone = outcomes(DraftTopK(TOP, None), draft, own, exit)
    named = set(alone)
    assert [o for o in outcomes(Blend(Exit(2, TOP), TOP, None, 0.0), draft, own, exit) if o in named] == alone
    alone = outcomes(EarlyExitTopK(Exit(2, TOP), None), draft, own, exit)
    named = set(alone)
    assert [o for o in outcomes(Blend(Exit(2, TOP), TOP, None, 1.0), draft, own, exit) if o in named] == alone


def test_a_source_that_is_wrong_and_sure_of_it_does_not_silence_the_other() -> None:
    draft, own, exit = drawn(1)
    right = int(exit[0, 0].topk(2).indices[1 if exit[0, 0].argmax() == draft.tokens[0, 0] else 0])
    own[0, 0] = torch.full((VOCABULARY,), -40.0)
    own[0, 0, (right + 1) % VOCABULARY] = 0.0
    assert (0, right) in outcomes(Blend(Exit(2, TOP), TOP, 6, 0.5), draft, own, exit)
