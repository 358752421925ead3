"""Of two drafters the second drafts where the first has nothing, and misses nothing meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from test_eagle3 import KNOWN, LAYERS, SETTINGS

import specdec
from drafters import (
    Eagle3Drafter,
    HybridDrafter,
    ModelDrafter,
    NgramDrafter,
    SuffixDrafter,
)
from drafters.eagle3_head import Eagle3Head
from specdec import Context, Draft, Ratio, Sampling, tree
from specdec.channel.sides import device_of
from specdec.noise import Still
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


class Noting:
    """Remembers what it drafted, and behind which tokens."""

    def begin(self, target, seq):
        super().begin(target, seq)
        self.drafts = []

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.drafts.append((context, made))
        return made


class Asked(Noting, Eagle3Drafter):
    """The second one."""


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


class Noted(Noting, HybridDrafter):
    """Both."""


def nodes(draft, row):
    """Tokens of a chain."""
    return draft.tokens[row][draft.parents[row] != tree.PAD].tolist()


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "warm"])
def test_each_row_has_the_drafter_that_serves_it(target, head, sampling):
    drafter = Noted(NgramDrafter(4), Asked(head, 3))
    result = specdec.generate(
        FullVerifier(target), drafter, ROWS, 24, sampling=sampling, acceptance=Ratio(), seed=1
    )
    assert not result.metrics.faults
    if sampling.greedy:
        assert [result.row(b) for b in range(3)] == [plain_greedy(target, row, 24) for row in ROWS]
    asked, served = {str(context.lengths): made for context, made in drafter.second.drafts}, [0, 0]
    for context, made in drafter.drafts:
        found, other = NgramDrafter(4).draft(context, Still()), asked.get(str(context.lengths))
        for b in (context.room > 1).nonzero()[:, 0].tolist():
            looked_up = bool(nodes(found, b))
            served[looked_up] += 1
            size = len(nodes(made, b))
            assert nodes(made, b) == nodes(found if looked_up else other, b)
            if made.laws is None:
                assert other is None or other.laws is None
            elif looked_up:
                assert torch.equal(made.laws[b, :size], torch.eye(made.laws.shape[2])[nodes(made, b)])
            else:
                assert torch.equal(made.laws[b, :size], other.laws[b, :size])
    assert min(served) > 5, "both drafters serve"
    assert sampling.greedy or any(made.laws is not None for _, made in drafter.drafts)


class Said:
    """Drafts what it is told to."""

    wants, static, size = (), False, 3

    def __init__(self, draft):
        self.said = draft

    def begin(self, target, seq):
        """Nothing to forget."""

    def draft(self, context, noise):
        return self.said


@pytest.mark.parametrize("padding", [0, -1, 99])
def test_laws_of_both_stand_side_by_side(padding):
    lengths_B = torch.tensor([4, 5])
    looked_up = Draft.chain(torch.tensor([[2, 1, 0], [padding] * 3]), lengths_B, torch.tensor([3, 0]))
    laws_BNV = torch.rand(2, 2, 3)
    drawn = Draft.chain(torch.tensor([[1, 1], [2, 0]]), lengths_B, torch.tensor([2, 2]), laws_BNV)
    context = Context(torch.zeros(2, 9).long(), lengths_B, lengths_B, Sampling())
    found = HybridDrafter(Said(looked_up), Said(drawn)).draft(context, Still())
    assert found.tokens.tolist() == [[2, 1, 0], [2, 0, 0]] and found.fanout == 1
    assert found.parents.tolist() == [[-1, 0, 1], [-1, 0, tree.PAD]]
    assert torch.equal(found.laws[0], torch.eye(3)[[2, 1, 0]]) and torch.equal(found.laws[1, :2], laws_BNV[1])
    bare = replace(drawn, laws=None)
    assert HybridDrafter(Said(looked_up), Said(bare)).draft(context, Still()).laws is None


class Failing:
    """A drafter that fails when it is asked for the first times."""

    def draft(self, context, noise):
        self.failed += 1
        if self.failed <= 2:
            raise RuntimeError("not yet")
        return super().draft(context, noise)

    def begin(self, target, seq):
        super().begin(target, seq)
        self.failed = 0


class FailingNgram(Failing, NgramDrafter):
    """The first one."""


class FailingEagle(Failing, Asked):
    """The second one."""


@pytest.mark.parametrize("failing", ["first", "second"])
def test_what_was_told_in_a_round_that_failed_is_told_with_the_next_one(target, head, failing):
    first = (FailingNgram if failing == "first" else NgramDrafter)(4, min_ngram=3)
    second = (FailingEagle if failing == "second" else Asked)(head, 3)
    prompt = random_prompt(9, 1)
    result = specdec.generate(FullVerifier(target), HybridDrafter(first, second), prompt, 24)
    assert sum(result.metrics.faults.values()) == 2
    told = [context.advice.positions for context, _ in second.drafts]
    places = sorted(place for positions in told for place in positions.flatten().tolist() if place >= 0)
    assert places == list(range(len(places))) and len(places) > len(prompt) + 10
    assert told[0].max() > len(prompt), "of three rounds at once"


class Repeating(NgramDrafter):
    """Where there are two rows it proposes the last token again, always."""

    def draft(self, context, noise):
        if len(context.lengths) != 2:
            return super().draft(context, noise)
        last_B1 = context.tokens.gather(1, context.lengths[:, None] - 1)
        return Draft.chain(last_B1, context.lengths, torch.ones_like(context.lengths))


def test_nothing_of_the_last_generation_is_told(target, head):
    drafter = HybridDrafter(Repeating(4, min_ngram=2), Asked(head, 3))
    specdec.generate(FullVerifier(target), drafter, [[5, 6, 7] * 3] * 2, 8)
    assert not drafter.second.drafts, "the first one served to the end"
    result = specdec.generate(FullVerifier(target), drafter, ROWS, 16)
    assert not result.metrics.faults and drafter.second.drafts
    alone = Asked(head, 3)
    specdec.generate(FullVerifier(target), alone, ROWS, 16)
    (context, made), (known, expected) = drafter.second.drafts[0], alone.drafts[0]
    assert torch.equal(context.advice.positions, known.advice.positions) and torch.equal(
        made.tokens, expected.tokens
    )


def test_it_wants_and_is_what_its_parts_want_and_are(head):
    drafter = HybridDrafter(NgramDrafter(8), Eagle3Drafter(head, 3))
    assert drafter.size == 8 and drafter.static and drafter.borrows and drafter.device is None
    assert not HybridDrafter(SuffixDrafter(), Eagle3Drafter(head, 3)).static


def on(device):
    made = NgramDrafter()
    made.device = device
    return made


def test_it_works_where_its_parts_do(target):
    for parts in (
        (on("cuda:1"), NgramDrafter()),
        (NgramDrafter(), on("cuda:1")),
        (on("cuda:1"), on("cuda")),
        (on("cuda"), on("cuda:1")),
    ):
        hybrid = HybridDrafter(*parts)
        assert device_of(hybrid, torch.device("cpu")) == hybrid.device == torch.device("cuda:1")
    assert device_of(HybridDrafter(on(None), NgramDrafter()), torch.device("cpu")) == torch.device("cpu")
    assert HybridDrafter(NgramDrafter(), ModelDrafter(target)).device == torch.device("cpu")
    for device in ("cuda:0", "cpu"):
        with pytest.raises(ValueError, match=f"cuda:1 and {device}: put both on one device"):
            HybridDrafter(on("cuda:1"), HybridDrafter(NgramDrafter(), on(device)))
