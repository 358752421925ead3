"""Drafters that read states of the target give its law, enumerated on a real network; planted faults do not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from exhaustive import distribution, total_variation
from families import llama, plain_logits
from scipy import stats
from torch.nn.functional import pad

import specdec
from drafters import AdapterDrafter, DFlashDrafter, Eagle3Drafter, EagleDrafter, MTPDrafter, StreamDrafter
from drafters.adapter_head import AdapterHead
from drafters.dflash import DFlashHead
from drafters.eagle import EagleHead
from drafters.eagle3_head import Eagle3Head
from drafters.mtp import MTPHead
from drafters.stream_head import StreamHead
from specdec import Block, Coupled, Match, Ratio, Sampling, tree
from verifiers import FullVerifier

V, PROMPT, NEW = 3, [0, 2, 1, 1], 4
ROWS = 8_000
WARM = Sampling(temperature=1.0)
# Rules that draw at every place make many branches: of two tokens each, they are few enough.
LOSSLESS = [(Ratio(), WARM), (Block(), WARM), *((rule, Sampling(1.0, top_k=2)) for rule in (Match(), Coupled()))]
SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}


@cache
def target():
    return llama(**{**SIZES, "num_hidden_layers": 3}).double()


@cache
def dflash():
    torch.manual_seed(1)
    chosen = {"mask_token_id": 0, "target_layer_ids": [0, 1]}
    return DFlashHead({**SIZES, "block_size": 3, "dflash_config": chosen})


@cache
def mtp():
    torch.manual_seed(2)
    return MTPHead(SIZES)


@cache
def adapter():
    torch.manual_seed(3)
    return AdapterHead({**SIZES, "exit_layer": 1})


@cache
def eagle():
    torch.manual_seed(3)
    return EagleHead(SIZES)


@cache
def eagle3():
    torch.manual_seed(4)
    return Eagle3Head(SIZES, 16, torch.tensor([0, 2]), layers=(1, 2, 3))


DRAFTERS = {
    "eagle": lambda: EagleDrafter(eagle(), length=2),
    "eagle tree": lambda: EagleDrafter(eagle(), length=2, width=2, nodes=4),
    "eagle 3": lambda: Eagle3Drafter(eagle3(), length=2),
    "eagle 3 tree": lambda: Eagle3Drafter(eagle3(), tree=[[0], [1], [0, 0]]),
    "adapter": lambda: AdapterDrafter(adapter(), length=2),
    "adapter tree": lambda: AdapterDrafter(adapter(), length=2, width=2, nodes=4),
    "dflash": lambda: DFlashDrafter(dflash()),
    "dflash tree": lambda: DFlashDrafter(dflash(), width=2, nodes=4),
    "mtp": lambda: MTPDrafter(mtp(), length=2),
    "streams": lambda: StreamDrafter(StreamHead.on(eagle3(), 1), length=3, steps=2, candidates=2),
    "mtp tree": lambda: MTPDrafter(mtp(), length=2, width=2, nodes=4),
}


@cache
def expected(sampling):
    """The law of plain decoding, from forwards without a cache."""
    law = {(): 1.0}
    for _ in range(NEW):
        longer = {}
        for tokens, weight in law.items():
            chances = sampling.law(plain_logits(target(), [*PROMPT, *tokens])[-1]).tolist()
            longer |= {(*tokens, token): weight * chance for token, chance in enumerate(chances)}
        law = longer
    return law


class Quiet(FullVerifier):
    """Only one token is possible behind padding and beyond a row's end, so that those add no branches."""

    def score(self, seq, draft, hint=None):
        evidence = super().score(seq, draft, hint)
        idle_BM = pad(draft.parents == tree.PAD, (1, 0)) | (draft.positions >= seq.limits[:, None])
        only_V = torch.eye(V, dtype=torch.float64)[0]
        laws_BMV = torch.where(idle_BM[..., None], only_V, evidence.laws())
        return SimpleNamespace(laws=lambda: laws_BMV, early=None, along=evidence.along)


def distance(make_drafter, rule, sampling=WARM):
    got = distribution(make_drafter, Quiet(target()), rule, PROMPT, NEW, sampling, least=1e-6)
    assert sum(got.values()) == pytest.approx(1, abs=1e-5), "the enumeration is not complete"
    return total_variation(got, expected(sampling))


@pytest.mark.parametrize(("rule", "sampling"), LOSSLESS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("name", DRAFTERS)
def test_reproduces_the_targets_law(name, rule, sampling):
    assert distance(DRAFTERS[name], rule, sampling) < 1e-5  # norms are computed in single precision


def softly_argmax(draft):
    return replace(draft, tokens=draft.laws.argmax(-1))


def law_of_the_place_before(draft):
    return replace(draft, laws=draft.laws.roll(1, 1))


@pytest.mark.parametrize("fault", [softly_argmax, law_of_the_place_before])
@pytest.mark.parametrize("name", [name for name in DRAFTERS if "tree" not in name])
def test_planted_faults_are_caught(name, fault):
    def made():
        drafter = DRAFTERS[name]()
        draft = drafter.draft
        drafter.draft = lambda *what: changed(draft(*what), fault)
        return drafter

    assert distance(made, Ratio()) > 1e-3


def p_value(make_drafter, rule):
    """Of the hypothesis that the rows of one batch, each with noise of its own, follow the target's law."""
    rows = specdec.generate(
        FullVerifier(target()), make_drafter(), [PROMPT] * ROWS, NEW, sampling=WARM, acceptance=rule, seed=11
    )
    assert not rows.metrics.faults
    seen, law = Counter(map(tuple, rows.tokens.tolist())), expected(WARM)
    likely = [tokens for tokens, chance in law.items() if chance * ROWS >= 5]
    counts, sizes = [seen[tokens] for tokens in likely], [law[tokens] * ROWS for tokens in likely]
    # What is too rare to be tested alone is tested together.
    counts, sizes = [*counts, ROWS - sum(counts)], [*sizes, ROWS - sum(sizes)]
    return float(stats.chisquare(counts, sizes).pvalue)


@pytest.mark.parametrize("rule", [Ratio(), Block()], ids=lambda rule: type(rule).__name__)
def test_guesses_with_the_noise_of_what_they_guess_leave_the_law_alone(rule):
    """The enumeration lets guesses differ from what they guess by chance alone: noise couples them."""
    assert p_value(DRAFTERS["streams"], rule) > 1e-3

    def wrong():
        drafter = DRAFTERS["streams"]()
        draft = drafter.draft
        drafter.draft = lambda *what: changed(draft(*what), softly_argmax)
        return drafter

    assert p_value(wrong, rule) < 1e-9


def changed(draft, fault):
    return fault(draft) if draft.size else draft
