"""How likely an outcome is, beside what the acceptance rules do in ten thousands of rows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from specdec import Draft, hypotheses, tree
from specdec.acceptance import Match, Ratio
from specdec.hypotheses import Candidates, Hypotheses, arrival, drawn, judged, refusal, refused, weighed
from specdec.noise import Noise
from specdec.protocols import AcceptanceRule

GENERATOR = torch.Generator().manual_seed(0)
TREES = [[-1, 0, 1], [-1, -1, 0, 0, 1], [-1, 0, -2, -2], [], [-1, -1, -1]]
ROWS, WORDS = 40_000, 5
SIGMAS = 5.0  # of about thirty outcomes: one in 60 000 trials of a right formula is farther off


def draft_of(parents: list[int]) -> Draft:
    parents_BN = torch.tensor([parents], dtype=torch.int64).reshape(1, -1)
    tokens_BN = torch.randint(0, 9, parents_BN.shape, generator=GENERATOR)
    return Draft(tokens_BN, parents_BN, torch.tensor([4]))


@pytest.mark.parametrize("parents", TREES, ids=str)
def test_a_path_comes_to_a_place_and_ends_there_by_brute_force(parents: list[int]) -> None:
    draft = draft_of(parents)
    chances = (0.1 + 0.8 * torch.rand(len(parents), generator=GENERATOR)).tolist()
    arrives, ends = ([0.0] * (len(parents) + 1) for _ in range(2))
    for taken in itertools.product((False, True), repeat=len(parents)):
        weight = math.prod(c if t else 1 - c for c, t in zip(chances, taken, strict=True))
        for end in range(-1, len(parents)):
            if end >= 0 and parents[end] == tree.PAD:
                continue
            way, node = set(), end
            while node >= 0:
                way.add(node)
                node = parents[node]
            children = {n for n, parent in enumerate(parents) if parent == end}
            if all(taken[n] for n in way):
                arrives[end + 1] += weight
                ends[end + 1] += weight * (not any(taken[n] for n in children))
    chances_BN = torch.tensor([chances]).reshape(1, -1)
    came_M, left_M = arrival(chances_BN.log(), draft)[0], refusal(chances_BN, draft)[0]
    assert torch.allclose(came_M.exp(), torch.tensor(arrives), atol=1e-6)
    assert torch.allclose((came_M + left_M).exp(), torch.tensor(ends), atol=1e-6)


def test_the_likeliest_outcomes_are_prepared_and_a_refused_token_is_none() -> None:
    draft = draft_of([-1, 0, 0, 1])
    tokens_BMK = torch.randint(0, 9, (1, 5, 4), generator=GENERATOR)
    tokens_BMK[0, 0, 1], tokens_BMK[0, 1, 2] = draft.tokens[0, 0], draft.tokens[0, 2]
    scores_BMK = torch.randn(1, 5, 4, generator=GENERATOR)
    candidates = Candidates(tokens_BMK, scores_BMK, -torch.rand(1, 4, generator=GENERATOR))
    came_M = arrival(candidates.window, draft)[0]
    children = {m: {int(draft.tokens[0, n]) for n in range(4) if draft.parents[0, n] == m - 1} for m in range(5)}
    gains = {
        (m - 1, k): float(came_M[m] + scores_BMK[0, m, k])
        for m in range(5)
        for k in range(4)
        if int(tokens_BMK[0, m, k]) not in children[m]
    }
    assert int(refused(tokens_BMK, draft).sum()) == 20 - len(gains) >= 2
    best = sorted(gains, key=gains.__getitem__, reverse=True)
    for budget in (1, 3, 7):
        made = Hypotheses.likeliest(candidates, draft, budget)
        wanted = [(node, int(tokens_BMK[0, node + 1, k])) for node, k in best[:budget]]
        assert list(zip(made.nodes[0].tolist(), made.tokens[0].tolist(), strict=True)) == wanted
    everything = Hypotheses.likeliest(candidates, draft, None)
    assert int((everything.nodes != tree.PAD).sum()) == len(gains)


def window(parents: list[int], weighs: bool) -> tuple[Draft, torch.Tensor]:
    """A draft with the laws that its tokens came from, and what the target says at its places."""
    size = len(parents)
    p_BMV = torch.randn(1, size + 1, WORDS, generator=GENERATOR).softmax(-1)
    q_BNV = torch.randn(1, size, WORDS, generator=GENERATOR).softmax(-1)
    tokens_BN = torch.randperm(WORDS, generator=GENERATOR)[None, :size]
    return judged(Draft(tokens_BN, torch.tensor([parents]), torch.tensor([3]), q_BNV), weighs), p_BMV


def seen(rule: AcceptanceRule, draft: Draft, p_BMV: torch.Tensor) -> torch.Tensor:
    """How often each place and token came of it, [M, V]."""
    many = [part.expand(ROWS, *part.shape[1:]) for part in (draft.tokens, draft.parents, draft.base)]
    laws = None if draft.laws is None else draft.laws.expand(ROWS, -1, -1)
    noise = Noise(0, torch.arange(ROWS), 16)
    verdict = rule(Draft(*many, laws), p_BMV.expand(ROWS, -1, -1), noise)
    counts_X = torch.bincount((verdict.end + 1) * WORDS + verdict.tokens, minlength=p_BMV[0].numel())
    return counts_X.reshape(p_BMV.shape[1:]) / ROWS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parents", [[-1, 0, 1], [-1]], ids=str)
@pytest.mark.parametrize("rule", [Match(), Ratio()], ids=lambda rule: type(rule).__name__)
def test_chances_are_those_of_the_rule(rule, parents, seed, monkeypatch) -> None:
    monkeypatch.setattr(hypotheses, "DOUBT", 0.0)  # the target's law is known here
    monkeypatch.setattr(hypotheses, "SURE", 1 - 1e-6)
    GENERATOR.manual_seed(seed)
    draft, p_BMV = window(parents, rule.weighs)
    candidates = Candidates.top(p_BMV.log(), draft, WORDS)
    found_MV = seen(rule, draft, p_BMV)

    def far(score_BMK: torch.Tensor) -> float:
        score_BMK = score_BMK.masked_fill(refused(candidates.tokens, draft), -torch.inf)
        chance_MV = torch.zeros_like(p_BMV).scatter(-1, candidates.tokens, score_BMK.exp())[0]
        sigma_MV = (chance_MV * (1 - chance_MV) / ROWS).sqrt().clamp(min=1e-9)
        return float(((found_MV - chance_MV).abs() / sigma_MV).max())

    by_rule = drawn(candidates, draft) if draft.laws is None else weighed(candidates, draft, draft.laws)
    assert far(by_rule) < SIGMAS
    by_other = weighed(*points(candidates, draft)) if draft.laws is None else drawn(candidates, draft)
    assert draft.laws is None or far(by_other) > 4 * SIGMAS, "a rule would do for the other"
    assert draft.laws is not None or far(by_other) < SIGMAS, "a point mass is a law like any"


@pytest.mark.parametrize("parents", TREES, ids=str)
def test_no_outcome_of_a_tree_is_counted_twice(parents: list[int]) -> None:
    draft, p_BMV = window(parents, weighs=True)
    candidates = Candidates.top(p_BMV.log(), draft, WORDS)
    assert draft.laws is not None
    chance_BMK = weighed(candidates, draft, draft.laws).masked_fill(refused(candidates.tokens, draft), -torch.inf)
    assert 0.5 < float(chance_BMK.exp().sum()) <= 1 + 1e-5


def test_an_elder_child_is_tried_first() -> None:
    """Both are sure to be accepted by the laws: the younger one is asked only if the elder was refused."""
    draft, _ = window([-1, -1], weighs=True)
    p_BMV = torch.full((1, 3, WORDS), 1 / WORDS)
    draft = Draft(draft.tokens, draft.parents, draft.base, p_BMV[:, :2])
    found_M = seen(Ratio(), draft, p_BMV).sum(-1)
    assert found_M.tolist() == [0, 1, 0]
    candidates = Candidates.top(p_BMV.log(), draft, WORDS)
    chance_M = weighed(candidates, draft, p_BMV[:, :2])[0].exp().sum(-1)
    assert chance_M[1] > 3 * chance_M[2]


def points(candidates: Candidates, draft: Draft) -> tuple[Candidates, Draft, torch.Tensor]:
    laws_BNV = torch.zeros(*draft.tokens.shape, WORDS).scatter_(-1, draft.tokens[..., None], 1.0)
    return candidates, draft, laws_BNV


def test_a_drafter_that_doubts_itself_prepares_for_refusals_too(monkeypatch) -> None:
    """Its own law in place of the target's says that nothing is refused."""
    draft, p_BMV = window([-1, 0, 1], weighs=True)
    draft = Draft(draft.tokens, draft.parents, draft.base, p_BMV[:, :-1])
    candidates = Candidates.top(p_BMV.log(), draft, WORDS)

    def places() -> list[int]:
        return (Hypotheses.likeliest(candidates, draft, WORDS).nodes[0] + 1).tolist()

    assert set(places()) & {0, 1, 2}
    monkeypatch.setattr(hypotheses, "DOUBT", 1e-6)
    assert places() == [3] * WORDS
