"""Of two drafters the second drafts where the first has nothing, and misses nothing meanwhile."""

from __future__ import annotations

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from test_eagle3 import KNOWN, LAYERS, SETTINGS

import specdec
from drafters import Eagle3Drafter, HybridDrafter, NgramDrafter, SuffixDrafter
from drafters.eagle3_head import Eagle3Head
from drafters.hybrid import either
from specdec import Draft, Ratio, Sampling, tree
from verifiers import FullVerifier

ROWS = [random_prompt(9, 1), [5, 6, 7] * 3, random_prompt(5, 3)]
WARM = Sampling(temperature=0.5)


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(3)
    made = Eagle3Head(SETTINGS, 32, KNOWN, LAYERS, embeds=True)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


class Asked(Eagle3Drafter):
    """Remembers what it drafted, and behind which tokens."""

    def begin(self, target, seq):
        super().begin(target, seq)
        self.drafts = []

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.drafts.append((context, made))
        return made


class Beside(HybridDrafter):
    """The second one's twin is asked in every round."""

    def begin(self, target, seq):
        super().begin(target, seq)
        self.twin = Asked(self.second.head, self.second.shape.length)
        self.twin.begin(target, seq)

    def draft(self, context, noise):
        self.twin.draft(context, noise)
        return super().draft(context, noise)


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "warm"])
def test_the_second_drafts_as_if_it_had_been_asked_in_every_round(target, head, sampling):
    drafter = Beside(SuffixDrafter(4, min_match=2), Asked(head, 3))
    result = specdec.generate(FullVerifier(target), drafter, [[5, 6, 7] * 3], 40, sampling=sampling, seed=2)
    assert not result.metrics.faults
    mine, all_of_them = drafter.second.drafts, drafter.twin.drafts
    assert 3 < len(mine) < len(all_of_them), "it was asked in some rounds"
    by_length = {int(context.lengths): draft for context, draft in all_of_them}
    for context, draft in mine:
        same = by_length[int(context.lengths)]
        assert torch.equal(draft.tokens, same.tokens)
        assert draft.laws is None or torch.allclose(draft.laws, same.laws, atol=1e-5)


def test_each_row_has_the_drafter_that_serves_it(target, head):
    drafter = HybridDrafter(NgramDrafter(4, min_ngram=2), Eagle3Drafter(head, 3))
    result = specdec.generate(FullVerifier(target), drafter, ROWS, 16)
    assert [result.row(b) for b in range(3)] == [plain_greedy(target, row, 16) for row in ROWS]
    assert not result.metrics.faults
    sampled = specdec.generate(FullVerifier(target), drafter, ROWS, 16, sampling=WARM, acceptance=Ratio(), seed=1)
    assert not sampled.metrics.faults and sampled.metrics.mean_accepted_tokens > 1


def test_laws_of_both_stand_side_by_side():
    lengths_B = torch.tensor([4, 5])
    looked_up = Draft.chain(torch.tensor([[2, 1, 0], [0, 0, 0]]), lengths_B, torch.tensor([3, 0]))
    laws_BNV = torch.rand(2, 2, 3)
    drawn = Draft.chain(torch.tensor([[1, 1], [2, 0]]), lengths_B, torch.tensor([2, 2]), laws_BNV)
    found = either(torch.tensor([True, False]), looked_up, drawn)
    assert found.tokens.tolist() == [[2, 1, 0], [2, 0, 0]] and found.fanout == 1
    assert found.parents.tolist() == [[-1, 0, 1], [-1, 0, tree.PAD]]
    assert torch.equal(found.laws[0], torch.eye(3)[[2, 1, 0]]) and torch.equal(found.laws[1, :2], laws_BNV[1])


def test_it_wants_and_is_what_its_parts_want_and_are(head):
    drafter = HybridDrafter(NgramDrafter(8), Eagle3Drafter(head, 3))
    assert drafter.size == 8 and drafter.static and drafter.borrows
    assert not HybridDrafter(SuffixDrafter(), Eagle3Drafter(head, 3)).static
