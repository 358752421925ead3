"""Token Recycling and lookahead decoding against their papers' rules, written out in plain Python."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace
from itertools import product

import pytest
import torch
from families import FAMILIES, random_prompt

import specdec
from drafters import HybridDrafter, LookaheadDrafter, NullDrafter, RecyclingDrafter
from drafters.recycling import SHARE, UNKNOWN
from specdec import Advice, Context, Coupled, Sampling, Tops, tree
from specdec.channel import Inline, Process, Thread
from specdec.channel.inline import InlineLink
from specdec.channel.sides import worker_for
from specdec.forecast import AllAccepted
from specdec.messages import Outcome
from specdec.noise import Still
from specdec.sequences import Sequences
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2)]
MAKE = {
    "recycling": lambda: RecyclingDrafter(nodes=12, top=3, levels=3),
    "lookahead": lambda: LookaheadDrafter(window=3, ngram=3, guesses=2),
}


@pytest.fixture(scope="module")
def target():
    return FAMILIES["llama"]()


@pytest.mark.parametrize(("nodes", "top", "levels"), [(1, 1, 1), (9, 3, 3), (40, 8, 6), (100, 4, 3), (5, 1, 9)])
def test_the_likeliest_nodes_are_taken(nodes, top, levels):
    def chance(way):
        return SHARE ** len(way) / torch.tensor([rank + 1 for rank in way]).double().prod() ** 2

    drafter = RecyclingDrafter(nodes, top, levels)
    found = drafter.shape.paths
    every = (
        [way for depth in range(levels) for way in product(range(top), repeat=depth + 1)] if levels < 6 else None
    )
    assert len(set(found)) == drafter.size <= nodes
    assert max(map(len, found)) <= levels and max(map(max, found)) < top
    if every:
        assert drafter.size == min(nodes, len(every))
        worst = min(map(chance, found))
        assert all(chance(way) <= worst + 1e-12 for way in set(every) - set(found))


def context_of(rows, tops=None):
    lengths_B = torch.tensor([len(row) for row in rows])
    tokens_BS = torch.zeros(len(rows), int(lengths_B.max()) + 3, dtype=torch.int64)
    for line, row in zip(tokens_BS, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    advice = None if tops is None else Advice({}, lengths_B[:, None][:, :0], tops)
    return Context(tokens_BS, lengths_B, torch.full_like(lengths_B, 50), Sampling(), advice)


def random_tops(rng, rows, nodes, vocabulary, top):
    """Windows with padding, in which tokens repeat."""
    tokens = [[rng.randrange(vocabulary) for _ in range(nodes + 1)] for _ in range(rows)]
    parents = [[rng.choice([tree.PAD, *range(tree.ROOT, n)]) for n in range(nodes)] for _ in range(rows)]
    said = [[rng.sample(range(vocabulary), top) for _ in range(nodes + 1)] for _ in range(rows)]
    return Tops(*map(torch.tensor, (tokens, parents, said)))


def test_recycling_follows_the_last_word_about_every_token(target):
    rng, drafter, known = random.Random(3), RecyclingDrafter(nodes=12, top=3, levels=3), {}
    rows, verifier = [[5, 1], [2]], FullVerifier(target)
    drafter.begin(verifier, Sequences.start(rows, 8))
    for _ in range(12):
        tops = random_tops(rng, 2, 6, 9, 3)
        draft = drafter.draft(context_of(rows, tops), Still())
        for b, n in product(range(2), range(7)):
            if n == 0 or tops.parents[b, n - 1] != tree.PAD:
                known[int(tops.tokens[b, n])] = tops.successors[b, n].tolist()
        for b, row in enumerate(rows):
            below = {(): row[-1]}
            for node, way in enumerate(drafter.shape.paths):
                successors = known.get(below.get(way[:-1]))
                assert (draft.parents[b, node] != tree.PAD) == (successors is not None)
                if successors is not None:
                    below[way] = successors[way[-1]]
                    assert draft.parents[b, node] == (
                        drafter.shape.paths.index(way[:-1]) if way[:-1] else tree.ROOT
                    )
                    assert draft.tokens[b, node] == below[way]
        rows = [[*row, rng.randrange(9)] for row in rows]
    assert draft.laws is None and len(known) > 6


@pytest.mark.parametrize("warm", [False, True])
def test_a_warm_table_outlives_the_generation_and_no_other_target(target, warm):
    drafter, verifier = RecyclingDrafter(nodes=12, top=3, levels=3, warm=warm), FullVerifier(target)
    first, second = (specdec.generate(verifier, drafter, ROWS[0], 20).metrics for _ in range(2))
    assert (second.mean_accepted_tokens > first.mean_accepted_tokens) == warm
    smaller = FullVerifier(FAMILIES["llama"](vocab_size=97))
    result = specdec.generate(smaller, drafter, [1, 2], 20)
    assert result.row() == specdec.generate(smaller, NullDrafter(), [1, 2], 20).row() and not result.metrics.faults


@pytest.mark.parametrize("options", [{"nodes": 0}, {"top": 0}, {"levels": 0}])
def test_recycling_says_what_it_cannot_be(options):
    with pytest.raises(ValueError, match="at least 1"):
        RecyclingDrafter(**options)


def slow_lookahead(ask, prompt, new, window, ngram, guesses):
    """Greedy lookahead decoding by the paper, one forward per question; tokens committed in each round."""
    places = [[prompt[-(1 + i % len(prompt))]] for i in reversed(range(window))]
    row, pool, rounds = list(prompt), {}, []
    row.append(ask(row))  # prefill
    while len(row) < len(prompt) + new:
        kept = pool.get(row[-1], [])[-guesses:]
        branches = [*reversed(kept)]
        for i in range(window):
            branches.append([*(place[0] for place in places[: i + 1]), *places[i][1:]])
        said, best = {place: ask([*row, *branches[len(kept) + place]]) for place in range(window)}, []
        while any(branch[: len(best) + 1] == [*best, ask([*row, *best])] for branch in branches):
            best.append(ask([*row, *best]))
        row += [*best, ask([*row, *best])]
        rounds.append(len(best) + 1)
        for place in range(window):
            places[place].append(said[place])
        if len(places[0]) == ngram:
            for place in places:
                grams = pool.setdefault(place[0], [])
                if place[1:] in grams:
                    grams.remove(place[1:])
                grams.append(place[1:])
                del grams[:-guesses]
                del place[0]
    return row[len(prompt) :], rounds


@pytest.mark.parametrize(("window", "ngram", "guesses"), [(3, 3, 2), (4, 2, 1), (2, 4, 3)])
def test_lookahead_decodes_round_by_round_as_the_paper_does(target, window, ngram, guesses):
    known = {}

    @torch.no_grad()
    def ask(row):
        if tuple(row) not in known:
            logits = target(input_ids=torch.tensor([row]), use_cache=False).logits
            known[tuple(row)] = int(logits[0, -1].argmax())
        return known[tuple(row)]

    new = 40
    tokens, rounds = slow_lookahead(ask, ROWS[0], new, window, ngram, guesses)
    drafter = LookaheadDrafter(window, ngram, guesses)
    result = specdec.generate(FullVerifier(target), drafter, ROWS[0], new)
    assert result.row() == tokens[:new] and not result.metrics.faults
    # A window that does not fit the room that is left is cut, so the last rounds may differ.
    committed = [entry.committed for entry in result.trace.rounds][1:]
    sure = sum(1 for index in range(len(rounds)) if sum(rounds[: index + 1]) < new - window - ngram)
    assert committed[:sure] == rounds[:sure] and max(rounds[:sure]) > 1
    assert all(entry.nodes <= drafter.size for entry in result.trace.rounds)


@pytest.mark.parametrize("options", [{"window": 0}, {"ngram": 1}, {"guesses": 0}])
def test_lookahead_says_what_it_cannot_be(options):
    with pytest.raises(ValueError, match="at least 1"):
        LookaheadDrafter(**options)


def rounds_of(result):
    return [(entry.row, entry.nodes, entry.accepted, entry.committed) for entry in result.trace.rounds]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(
    "channel",
    [Inline(), Thread(patience=60), Process(patience=60)],
    ids=["inline", "thread", "process"],
)
def test_drafting_ahead_makes_the_drafts_of_drafting_in_turns(target, name, channel):
    options = {"max_new_tokens": 30, "sampling": Sampling(temperature=0.3), "acceptance": Coupled()}
    expected = specdec.generate(FullVerifier(FAMILIES["llama"]()), MAKE[name](), ROWS, **options)
    result = specdec.generate(
        FullVerifier(FAMILIES["llama"]()), MAKE[name](), ROWS, forecast=AllAccepted(), channel=channel, **options
    )
    if isinstance(channel, Process):
        channel.close()
    assert torch.equal(result.tokens, expected.tokens) and not result.metrics.faults
    assert rounds_of(result) == rounds_of(expected)


class Silent(InlineLink):
    """What the target said gets lost, in every second round or always."""

    def __init__(self, worker, every):
        super().__init__(worker)
        self.every = every

    def send(self, message):
        if isinstance(message, Outcome) and message.round % self.every == 0:
            message = replace(message, advice=None)
        super().send(message)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("every", [1, 2])
def test_what_is_lost_costs_drafts_and_no_token(target, name, every):
    class Through(Inline):
        @contextmanager
        def link(self, drafter, forecast, verifier, clock):
            yield Silent(worker_for(drafter, forecast, verifier, clock), every)

    plain = specdec.generate(FullVerifier(target), NullDrafter(), ROWS, 30)
    heard = specdec.generate(FullVerifier(target), MAKE[name](), ROWS, 30)
    result = specdec.generate(
        FullVerifier(target), MAKE[name](), ROWS, 30, forecast=AllAccepted(), channel=Through()
    )
    assert torch.equal(result.tokens, plain.tokens) and not result.metrics.faults
    assert result.metrics.mean_accepted_tokens < heard.metrics.mean_accepted_tokens


def test_who_wants_more_than_there_is_is_told(target):
    with pytest.raises(ValueError, match="cannot name the 129"):
        specdec.generate(FullVerifier(target), RecyclingDrafter(top=129), [1], 8)


def test_another_drafter_may_want_more_successors(target):
    few, many = RecyclingDrafter(nodes=4, top=2, levels=2), RecyclingDrafter(nodes=12, top=8, levels=3)
    for parts in ((few, many), (many, few)):
        result = specdec.generate(FullVerifier(target), HybridDrafter(*parts), ROWS, 24)
        assert not result.metrics.faults
        assert (few._adjacency.table != UNKNOWN).any() and (many._adjacency.table != UNKNOWN).any()
    tops = Tops(torch.tensor([[5, 6]]), torch.tensor([[-1]]), torch.arange(16).view(1, 2, 8))
    with torch.inference_mode():
        few._adjacency.learn(tops)
    assert few._adjacency.table[[5, 6]].tolist() == [[0, 1], [8, 9]]
