"""Rules, drafters and noise together, in numbers: chi-square of what is decoded, with a control that must fail."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from exhaustive import autoregressive
from scipy import stats
from test_lossless import DRAFTS, LOSSLESS, NEW, PROMPT, TARGET, WARM, Altered, argmax_with_soft_law

from specdec import Block, Ratio, Trace
from specdec.decode import noise_for
from specdec.guard import Guarded
from specdec.loop import serial
from specdec.sequences import Sequences
from verifiers import FullVerifier

ROWS = 20_000


def p_value(make_drafter, rule):
    """Of the hypothesis that the rows of one batch are draws from the target's law."""
    target, seq = FullVerifier(TARGET), Sequences.start([PROMPT] * ROWS, NEW, (), WARM)
    drafter, trace = Guarded(make_drafter(), Trace()), Trace()
    drafter.begin(target, seq)
    target.begin(seq)
    seq = serial(seq, drafter, target, rule, noise_for(seq, 11, rule), trace)
    seen = Counter(map(tuple, seq.tokens[:, len(PROMPT) :].tolist()))
    law = autoregressive(TARGET, PROMPT, NEW, WARM)
    assert set(seen) <= set(law)
    likely = [tokens for tokens, chance in law.items() if chance * ROWS >= 5]
    counts = torch.tensor([seen[tokens] for tokens in likely], dtype=torch.float64)
    expected = torch.tensor([law[tokens] for tokens in likely], dtype=torch.float64) * ROWS
    # What is too rare to be tested alone is tested together.
    rest, rest_expected = ROWS - counts.sum(), ROWS - expected.sum()
    counts, expected = torch.cat([counts, rest[None]]), torch.cat([expected, rest_expected[None]])
    return float(stats.chisquare(counts.numpy(), expected.numpy()).pvalue)


@pytest.mark.parametrize("rule", LOSSLESS, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kind", ["plain", "chain", "top_k_tree", "without_replacement", "ngram", "early_exit"])
def test_what_is_decoded_follows_the_law(kind, rule):
    assert p_value(DRAFTS[kind], rule) > 1e-3


@pytest.mark.parametrize("rule", [Ratio(), Block()], ids=lambda rule: type(rule).__name__)
def test_a_wrong_law_is_noticed(rule):
    assert p_value(lambda: Altered(argmax_with_soft_law, length=2), rule) < 1e-9
