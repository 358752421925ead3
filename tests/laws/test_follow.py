"""At temperature 0 every lossless rule takes the target's own tokens as far as the draft has them."""

from __future__ import annotations

import random

import pytest
import torch

from specdec import Block, Coupled, Draft, Match, Ratio, Sampling, tree
from specdec.acceptance.follow import follow
from specdec.noise import Still
from specdec.sequences import new_tokens

VOCABULARY = 6


def some_draft(rng, laws):
    """Rows of trees whose siblings differ, or of chains with laws."""
    parents, tokens = [], []
    for _ in range(4):
        row, said = [], []
        for n in range(7):
            above = (
                n - 1
                if laws
                else rng.choice([tree.PAD, *(p for p in range(-1, n) if p < 0 or row[p] != tree.PAD)])
            )
            siblings = [token for token, parent in zip(said, row, strict=True) if parent == above]
            row.append(above)
            said.append(rng.choice([token for token in range(VOCABULARY) if token not in siblings] or [0]))
        parents.append(row)
        tokens.append(said)
    tokens_BN = torch.tensor(tokens)
    law_BNV = None
    if laws:
        law_BNV = torch.rand(4, 7, VOCABULARY).scatter(2, tokens_BN[..., None], 2.0)
        law_BNV /= law_BNV.sum(-1, keepdim=True)
    return Draft(tokens_BN, torch.tensor(parents), torch.tensor([3, 4, 5, 6]), law_BNV)


@pytest.mark.parametrize("laws", [False, True], ids=["trees", "chains with laws"])
@pytest.mark.parametrize("rule", [Ratio(), Match(), Coupled(), Block()], ids=lambda rule: type(rule).__name__)
def test_a_verdict_is_the_rule_s_own(rule, laws):
    rng, accepted = random.Random(0), set()
    torch.manual_seed(0)
    for _ in range(60):
        draft, sampling = some_draft(rng, laws), Sampling()
        logits_BMV = torch.randn(4, draft.size + 1, VOCABULARY)
        for node in range(draft.size):  # half of the draft's tokens are the target's
            if rng.random() < 0.5:
                row_B = torch.arange(4)
                logits_BMV[row_B, draft.parents[:, node].clamp(min=-1) + 1, draft.tokens[:, node]] += 9 + node
        expected = rule(draft, sampling.law(logits_BMV), Still())
        got = follow(draft, sampling.choice(logits_BMV))
        if laws or not isinstance(rule, Block):  # which looks at a node's first child only
            assert all(map(torch.equal, got.parts, expected.parts))
        mine_BJ, theirs_BJ = new_tokens(draft, got), new_tokens(draft, expected)
        for mine, theirs, count in zip(mine_BJ, theirs_BJ, expected.accepted.tolist(), strict=True):
            assert torch.equal(mine[: count + 1], theirs[: count + 1])
        accepted.update(got.accepted.tolist())
    assert len(accepted) > 3
