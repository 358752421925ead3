"""Behind the prompt no shape depends on its length: for every new one a GPU's libraries make a plan."""

from __future__ import annotations

import pytest
from families import llama, random_prompt
from recorded import DRAFTERS, HEADS, replaying

import specdec
from specdec.exit import Exit
from specdec.forecast import Blend, DraftTopK
from specdec.runtime import attention

NAMES = ("chain", "tree", "early exit", "eagle", "eagle 3", "eagle 3 tree", "streams", "hybrid", "adapter")
AHEAD = ("chain", "early exit", "eagle 3", "eagle 3 tree", "streams", "hybrid")
FORECASTS = {"hits": DraftTopK(2), "exit": Blend(Exit(2, 4), top=4, branches=8)}


@pytest.mark.parametrize(
    ("name", "forecast"),
    [*((name, None) for name in NAMES), *((name, forecast) for name in AHEAD for forecast in FORECASTS)],
)
def test_a_prompt_of_another_length_brings_no_masks_of_another_shape(name, forecast, monkeypatch):
    shapes, attend = set(), attention.scaled_dot_product_attention

    def noting(query, key, value, attn_mask=None, **options):
        if attn_mask is not None:
            shapes.add((tuple(query.shape), tuple(key.shape)))
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", noting)
    model = llama()
    verifier, drafter = replaying(model, []), {**DRAFTERS, **HEADS}[name](model)
    for length in (9, 9, 14):
        before = set(shapes)
        result = specdec.generate(
            verifier, drafter, random_prompt(length, 1), 24, forecast=FORECASTS.get(forecast)
        )
        assert not result.metrics.faults and result.metrics.drafted_tokens > 0
    assert shapes == before
