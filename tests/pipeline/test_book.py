"""Books and messages against brute force."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specdec import Advice, Draft, Sampling, Tap, tree
from specdec.book import Book, either
from specdec.channel import wire
from specdec.channel.wire import decode, encode
from specdec.hypotheses import Candidates, Hypotheses
from specdec.messages import Closing, Early, Opening, Outcome, Ready, Window
from specdec.runtime.held import flatten
from specdec.trace import Span

GENERATOR = torch.Generator().manual_seed(0)


def draft_of(parents):
    parents_BN = torch.tensor([parents], dtype=torch.int64).reshape(1, -1)
    tokens_BN = torch.randint(0, 9, parents_BN.shape, generator=GENERATOR)
    return Draft(tokens_BN, parents_BN, torch.tensor([4]))


def book():
    nodes, tokens = torch.tensor([[-1, 0, 1], [-1, -1, -2]]), torch.tensor([[5, 5, 6], [5, 7, 0]])
    drafts = Draft.chain(torch.arange(12).reshape(6, 2), torch.arange(6), torch.full((6,), 2))
    return Book.of(torch.tensor([10, 20]), Hypotheses(nodes, tokens), drafts)


def test_a_book_gives_the_draft_of_what_came_true_and_no_other():
    for nodes, tokens, base, hits in (
        ([0, -1], [5, 7], [10, 20], [1, 4]),
        ([1, -1], [6, 5], [10, 20], [2, 3]),
        ([1, -2], [5, 0], [10, 20], [None, 5]),
        ([0, -1], [5, 7], [11, 20], [None, 4]),
        ([0, -1], [9, 9], [10, 20], [None, None]),
    ):
        draft, hit_B = book().look_up(torch.tensor(base), torch.tensor(nodes), torch.tensor(tokens))
        assert hit_B.tolist() == [row is not None for row in hits]
        for b, row in enumerate(hits):
            assert row is None or draft.tokens[b].tolist() == [2 * row, 2 * row + 1]


@pytest.mark.parametrize("laws", [False, True])
@pytest.mark.parametrize("sizes", [(2, 3), (3, 1), (0, 2), (2, 0), (0, 0)], ids=str)
def test_rows_take_the_prepared_or_the_fresh_draft(laws, sizes):
    def made(size, start):
        law = torch.rand(2, size, 4, generator=GENERATOR) if laws and size else None
        tokens = start + torch.arange(2 * size).reshape(2, size)
        return Draft.chain(tokens, torch.tensor([start, start + 1]), torch.full((2,), size), law)

    prepared, fresh = made(sizes[0], 100), made(sizes[1], 200)
    both = either(torch.tensor([True, False]), prepared, fresh)
    for row, one in ((0, prepared), (1, fresh)):
        real = both.parents[row] != tree.PAD
        assert both.tokens[row][real].tolist() == one.tokens[row].tolist()
        assert both.base[row] == one.base[row]
        if laws and one.size:
            assert torch.equal(both.laws[row][real], one.laws[row])


def messages():
    draft = draft_of([-1, 0])
    candidates = Candidates(torch.ones(1, 3, 2).long(), torch.rand(1, 3, 2), torch.rand(1, 2))
    one = torch.tensor([3])
    laws = replace(draft, laws=torch.rand(1, 2, 9))
    states = {Tap(2): torch.rand(1, 3, 4).bfloat16(), Tap(0): torch.rand(1, 3, 4)}
    outcome = Outcome(7, 3, one, torch.ones(1, 2).long(), one, one, one, torch.tensor([True]))
    return [
        Opening(
            7, 0, torch.ones(1, 5).long(), one, one, one, Sampling(temperature=0.5, top_k=3), 2**63, True, False, 9
        ),
        Ready(7, "no"),
        Early(7, 3, candidates),
        outcome,
        Window(7, 3, laws, torch.tensor([False]), 4, (Span("drafter.look", 1.0, 2.0, 3),), ("x: y",)),
        Window(7, 3, Draft.empty(one), torch.tensor([False])),
        Closing(),
        Ready(7, wants=(Tap(2), Tap(0))),
        replace(outcome, advice=Advice(states, torch.arange(3)[None])),
    ]


@pytest.mark.parametrize("message", messages(), ids=lambda message: type(message).__name__)
def test_messages_arrive_as_they_were_sent_or_not_at_all(message, monkeypatch):
    content, sent, arrived = encode(message), [], []
    assert flatten(decode(content), arrived) == flatten(message, sent)
    assert all(torch.equal(a, b) for a, b in zip(sent, arrived, strict=True))
    for size in range(0, len(content), 7):
        with pytest.raises(ValueError, match="damaged"):
            decode(content[:size])
    monkeypatch.setattr(wire, "VERSION", wire.VERSION + 1)
    with pytest.raises(ValueError, match="version"):
        decode(content)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"torch.int64", b"torct.int64"),
        (b"version", b"versiom"),
        (b"message", b"messabe"),
        (b"Window", b"Widnow"),
        (b"Window", b"Sampli"),
        (b"kind", b"kimd"),
        (b"branches", b"brunches"),
        (b'tensor\\": 0', b'tensor\\": 9'),
        (b'branches\\": 4', b'branches\\":[]'),
        (b'round\\": 3', b'round\\":{}'),
        (b'[\\"x: y\\"]', b"[10,1,2,3]"),
        (b"__metadata__", b"__metabata__"),
        (b"{", b"["),
    ],
)
def test_damage_of_any_kind_is_a_value_error(right, wrong):
    content = encode(messages()[4])
    assert right in content and len(right) == len(wrong)
    with pytest.raises(ValueError, match=r"damaged|part that is none"):
        decode(content.replace(right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(b'mapping\\"', b'mopping\\"'), (b'layer\\": 2', b'layer\\":[]'), (b'Tap\\"', b'Tep\\"')],
)
def test_damaged_advice_is_a_value_error(right, wrong):
    content = encode(messages()[-1])
    assert right in content and len(right) == len(wrong)
    with pytest.raises(ValueError, match=r"damaged|part that is none"):
        decode(content.replace(right, wrong))
