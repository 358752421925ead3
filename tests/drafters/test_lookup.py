"""Lookup drafters against brute force."""

from __future__ import annotations

import random

import torch

from drafters import NgramDrafter, SuffixDrafter
from drafters.automaton import BREAK, SuffixAutomaton
from drafters.ngram import latest_match
from specdec import Context, Sampling
from specdec.noise import Still


def context(rows, room=50):
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()) + 3, dtype=torch.int64)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return Context(tokens, lengths, torch.full_like(lengths, room), Sampling())


def occurrences(text, gram):
    """Ends of the earlier occurrences of a suffix."""
    return [end for end in range(len(gram) - 1, len(text) - 1) if text[end - len(gram) + 1 : end + 1] == gram]


def slow_match(text, shortest, longest):
    for size in range(min(longest, len(text)), shortest - 1, -1):
        found = occurrences(text, text[-size:])
        if found:
            return found[-1]
    return -1


def texts(seed, count=60, alphabet=3, longest=25):
    rng = random.Random(seed)
    return [[rng.randrange(alphabet) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def test_ngram_finds_what_brute_force_finds():
    rows = texts(0, alphabet=4)
    view = context(rows)
    for shortest, longest in ((1, 1), (1, 3), (2, 4), (3, 3)):
        found = latest_match(view.tokens, view.lengths, shortest, longest)
        assert found.tolist() == [slow_match(row, shortest, longest) for row in rows]


def test_ngram_proposes_what_followed():
    rows = [[7, 1, 2, 3, 4, 9, 1, 2], [5, 6, 7], [1, 1, 1]]
    draft = NgramDrafter(length=3, max_ngram=2).draft(context(rows), Still())
    assert draft.tokens[0].tolist() == [3, 4, 9]
    assert draft.parents.tolist() == [[-1, 0, 1], [-2, -2, -2], [-1, -2, -2]]
    assert draft.laws is None


def test_automaton_knows_the_longest_repeated_suffix():
    for text in texts(1):
        automaton = SuffixAutomaton()
        for end, token in enumerate(text):
            automaton.append(token)
            sofar = text[: end + 1]
            lengths = [size for size in range(1, end + 1) if occurrences(sofar, sofar[-size:])]
            length, last = automaton.earlier
            assert length == max(lengths, default=0)
            if length:
                assert last == occurrences(sofar, sofar[-length:])[-1]


def test_automaton_follows_another_text():
    rng = random.Random(2)
    for corpus in texts(3):
        automaton = SuffixAutomaton(corpus)
        place, read = (0, 0), []
        for _ in range(20):
            read.append(rng.randrange(3))
            place = automaton.step(*place, read[-1])
            whole = ",".join(map(str, corpus))
            sizes = [n for n in range(1, len(read) + 1) if ",".join(map(str, read[-n:])) in whole]
            assert place[1] == max(sizes, default=0)


def test_suffix_proposes_more_for_a_longer_match():
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2], [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3], [1, 2, 3]]
    drafter = SuffixDrafter(length=5)
    drafter.begin(None, type("Rows", (), {"prompts": rows}))
    draft = drafter.draft(context(rows), Still())
    assert (draft.parents > -2).sum(1).tolist() == [4, 5, 0]
    assert draft.tokens[0, :4].tolist() == [3, 4, 5, 6]


def test_suffix_looks_in_the_corpus_text_by_text():
    drafter = SuffixDrafter(length=4, corpus=[[10, 11, 12], [13, 14, 10, 11, 15, 16, 17]])
    rows = [[1, 10, 11]]
    drafter.begin(None, type("Rows", (), {"prompts": rows}))
    assert drafter.draft(context(rows), Still()).tokens.tolist() == [[15, 16, 17]]
    ends = SuffixDrafter(length=4, corpus=[[10, 11, 12], [13]])
    ends.begin(None, type("Rows", (), {"prompts": rows}))
    assert ends.draft(context(rows), Still()).tokens.tolist() == [[12]]
    assert BREAK not in ends.draft(context(rows), Still()).tokens


def test_suffix_starts_afresh_for_a_row_that_does_not_continue():
    drafter = SuffixDrafter()
    drafter.begin(None, type("Rows", (), {"prompts": [0]}))
    drafter.draft(context([[1, 2, 3, 1, 2]]), Still())
    assert drafter.draft(context([[4, 5, 6, 4, 5]]), Still()).tokens[0, :3].tolist() == [6, 4, 5]


def test_the_target_keeps_the_last_token_of_a_row():
    rows = [[1, 2, 3, 4, 5, 6, 1, 2]]
    drafter = SuffixDrafter()
    drafter.begin(None, type("Rows", (), {"prompts": rows}))
    assert drafter.draft(context(rows, room=3), Still()).size == 2
    assert drafter.draft(context(rows, room=1), Still()).size == 0
