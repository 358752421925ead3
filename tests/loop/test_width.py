"""Forwards of one width: what pads drafts, and where it is refused."""

from __future__ import annotations

import pytest
from recorded import replaying

import specdec
from drafters import (
    ModelDrafter,
    NgramDrafter,
    NullDrafter,
)
from specdec.channel import Simulated, Thread
from specdec.forecast import DraftTopK
from specdec.planner import Costs, Curve
from verifiers import FullVerifier

COSTS = Costs(target=Curve.flat("target", 5.0, 9), drafter=Curve.flat("drafter", 1.0, 9))


def widen(verifier, width):
    """Give a verifier a width as if our attention ran here."""
    verifier.model.network.brief = True
    try:
        verifier.width = width
    finally:
        verifier.model.network.brief = False


@pytest.mark.parametrize("drafter", [NullDrafter(), NgramDrafter(length=3)], ids=lambda part: type(part).__name__)
def test_a_fixed_width_pads_every_draft(tiny_llama, drafter):
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    verifier, widths = replaying(tiny_llama, []), []
    widen(verifier, 6)
    noting = tiny_llama.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with noting:
        assert specdec.generate(verifier, drafter, [1, 2], max_new_tokens=20).row() == expected.row()
    first, *others = widths
    assert first == 2 and set(others) == {6}, "the prompt as it is, then one token and padding"


def test_a_width_needs_replayed_rounds(tiny_llama):
    with pytest.raises(ValueError, match="needs runtime=graphed"):
        FullVerifier(tiny_llama, width=6)
    verifier = replaying(tiny_llama, [])
    with pytest.raises(ValueError, match="at least 1"):
        widen(verifier, 0)


def test_a_width_needs_our_attention(tiny_llama):
    verifier = replaying(tiny_llama, [])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM in float32 runs with PyTorch's"):
        verifier.width = 6
    assert verifier.width is None
    verifier.width = None
    widen(verifier, 6)
    assert verifier.width == 6


def test_a_width_that_drafts_do_not_fit_is_refused(tiny_llama):
    verifier = replaying(tiny_llama, [])
    widen(verifier, 4)
    with pytest.raises(ValueError, match="width is 4, but drafts have up to 6 tokens: it must be 7"):
        specdec.generate(verifier, NgramDrafter(length=6), [1, 2], max_new_tokens=20)


@pytest.mark.parametrize(
    ("channel", "forecast"),
    [(Thread(), DraftTopK(1)), (Simulated(COSTS), DraftTopK(1)), (Simulated(COSTS), None)],
    ids=["thread", "simulated", "simulated in turns"],
)
def test_a_width_is_refused_where_rounds_are_not_replayed(tiny_llama, channel, forecast):
    verifier, drafter = replaying(tiny_llama, []), ModelDrafter(tiny_llama, length=3)
    options = {"max_new_tokens": 20, "channel": channel, "forecast": forecast}
    assert specdec.generate(verifier, drafter, [1, 2], **options).lengths.tolist() == [20]
    widen(verifier, 6)
    with pytest.raises(ValueError, match="width of 6 is kept by replayed rounds only"):
        specdec.generate(verifier, drafter, [1, 2], **options)
