"""Noise is a pure function of its key, is what Philox says, and draws what the law says."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from specdec.noise import Lane, Noise, Still, philox

# Known answers of Philox4x32-10, from Random123's kat_vectors.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
ROWS, LAW = 20_000, torch.tensor([0.05, 0.4, 0.0, 0.25, 0.3])


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_words(counter, key, answer):
    words = philox(tuple(torch.tensor(word) for word in counter), key)
    assert tuple(int(word) for word in words) == answer


def noise(seed=7, rows=4, positions=16, coupled=False):
    return Noise(seed, torch.arange(rows), positions, coupled)


def test_same_key_same_number_whatever_else_is_asked():
    alone = Noise(7, torch.tensor([2]), 16).uniform(torch.tensor([[5]]), Lane.ACCEPT)
    table = noise().uniform(torch.arange(16).expand(4, -1), Lane.ACCEPT)
    assert table[2, 5] == alone[0, 0]
    assert noise(positions=64).uniform(torch.tensor([[5]] * 4), Lane.ACCEPT)[2] == alone


def test_keys_that_differ_in_one_part_give_other_numbers():
    place = torch.tensor([[5, 6]] * 4)
    numbers = [
        noise().uniform(place, Lane.ACCEPT),
        noise(seed=8).uniform(place, Lane.ACCEPT),
        noise(seed=7 + 2**32).uniform(place, Lane.ACCEPT),
        noise().uniform(place, Lane.DRAFT),
        *(noise().uniform(place, Lane.ACCEPT, index) for index in (1, 4, 5)),
    ]
    assert len(torch.cat(numbers).unique()) == len(numbers) * place.numel()


def draws(how, *depth):
    return how(LAW.expand(ROWS, 1, -1), torch.full((ROWS, 1), 3), *depth)


def p_value(tokens, law):
    seen = torch.bincount(tokens.flatten(), minlength=len(law)).double()
    possible = law > 0
    assert seen[~possible].sum() == 0, "a token without probability was drawn"
    expected = law[possible].double() / law.double().sum() * ROWS
    return stats.chisquare(seen[possible].numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize("how", ["draw", "race", "propose"])
@pytest.mark.parametrize("coupled", [False, True])
def test_draws_follow_the_law_and_a_wrong_law_is_noticed(how, coupled):
    tokens = draws(getattr(noise(rows=ROWS, coupled=coupled), how), *([0] if how == "propose" else []))
    assert p_value(tokens, LAW) > 1e-3
    assert p_value(tokens, LAW.clone().index_put_((torch.tensor(0),), torch.tensor(0.06))) < 1e-3


def test_draws_do_not_need_a_normalised_law():
    source = noise(rows=ROWS)
    place = torch.full((ROWS, 1), 3)
    wide = LAW.expand(ROWS, 1, -1)
    assert torch.equal(source.draw(wide, place), source.draw(wide * 0.125, place))


def test_draft_and_target_numbers_are_independent_unless_coupled():
    loose, tight = noise(rows=ROWS), noise(rows=ROWS, coupled=True)
    agree = (draws(loose.propose, 0) == draws(loose.draw)).double().mean()
    assert agree == pytest.approx(float((LAW**2).sum()), abs=0.015)
    assert torch.equal(draws(tight.propose, 0), draws(tight.race))


def test_every_draft_and_every_sibling_has_numbers_of_its_own():
    source, law = noise(rows=ROWS), LAW.expand(ROWS, 1, -1)
    keys = [(3, 1, 0), (4, 0, 0), (3, 1, 1)]  # the first two propose for the same position
    tokens = [source.propose(law, torch.full((ROWS, 1), length), *key) for length, *key in keys]
    for one, two in ((0, 1), (0, 2)):
        agree = (tokens[one] == tokens[two]).double().mean()
        assert agree == pytest.approx(float((LAW**2).sum()), abs=0.015)


def test_a_race_couples_close_laws():
    near = (LAW + torch.tensor([0.05, -0.05, 0, 0, 0])).expand(ROWS, 1, -1)
    source, place = noise(rows=ROWS), torch.full((ROWS, 1), 3)
    differ = (source.race(near, place) != draws(source.race)).double().mean()
    shift = 0.05  # total variation
    assert shift - 0.01 < differ < 2 * shift / (1 + shift) + 0.01  # the bound of arXiv 2408.07978


def test_accepts_with_the_chance_asked_for():
    chance = torch.full((ROWS, 1), 0.3)
    hits = int(noise(rows=ROWS).accepts(chance, torch.full((ROWS, 1), 3)).sum())
    assert stats.binomtest(hits, ROWS, 0.3).pvalue > 1e-3
    assert stats.binomtest(hits, ROWS, 0.32).pvalue < 1e-3


def test_neighbouring_positions_and_lanes_are_uncorrelated():
    table = noise(rows=1, positions=ROWS).uniform(torch.arange(ROWS)[None], Lane.ACCEPT)[0]
    other = noise(rows=1, positions=ROWS).uniform(torch.arange(ROWS)[None], Lane.TARGET)[0]
    for one, two in ((table[:-1], table[1:]), (table, other)):
        assert stats.pearsonr(one.numpy(), two.numpy()).pvalue > 1e-3
    assert stats.kstest(table.numpy(), "uniform").pvalue > 1e-3


def test_greedy_needs_no_noise():
    law = torch.eye(5)[None, 2:4]
    still, place = Still(), torch.zeros(1, 2, dtype=torch.int64)
    for draw in (still.draw, still.race):
        assert draw(law, place).tolist() == [[2, 3]]
    assert still.propose(law, place, 1).tolist() == [[2, 3]]
    assert still.accepts(torch.tensor([[0.0, 1.0]]), place).tolist() == [[False, True]]


def test_depths_of_their_own_draw_what_each_draws_alone():
    made, lengths_B2 = noise(5, 3, 40), torch.tensor([[3, 9], [39, 60], [0, 1]])
    laws_B2V = torch.rand(3, 2, 11, generator=torch.Generator().manual_seed(0))
    depths_B2 = torch.tensor([[0, 7], [4, 3], [9, 12]])
    alone_B2D = torch.stack([made.propose(laws_B2V, lengths_B2, depth) for depth in range(13)], -1)
    together_B2 = made.propose(laws_B2V, lengths_B2, depths_B2)
    assert torch.equal(together_B2, alone_B2D.gather(2, depths_B2[..., None])[..., 0])
    assert not torch.equal(together_B2, alone_B2D[..., 0])
