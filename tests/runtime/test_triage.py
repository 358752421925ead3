"""Triage: planted ties, drifts and bugs are called by their names, and real rounding is no bug."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import specdec
from drafters import EarlyExitDrafter, NgramDrafter, NullDrafter
from specdec.triage import Triage, judge, spacing
from verifiers import FullVerifier

PROMPT, NEW = [5, 6, 7, 8, 5, 6, 7], 24
BF16 = torch.bfloat16


def llama(layers: int = 2, dtype: torch.dtype = BF16, seed: int = 0) -> LlamaForCausalLM:
    """A random model of 97 tokens."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
    ).to(dtype)


def decode(verifier: FullVerifier, drafter: Any, prompt: list[int] = PROMPT) -> list[int]:
    """Greedy tokens."""
    return specdec.generate(verifier, drafter, prompt, max_new_tokens=NEW).row()


def logits(*leading: float, rest: float = -9.0) -> Tensor:
    """float32 logits of 40 tokens, the first of them as given."""
    return torch.tensor([*leading, *[rest - index / 100 for index in range(40 - len(leading))]])


def shaken(exact_V: Tensor, by: float) -> Tensor:
    """The logits in bfloat16, with the largest error among leading tokens set to ``by``."""
    return torch.cat([exact_V[:2], exact_V[2:3] + by, exact_V[3:]]).to(BF16)


def test_equal_runs_need_no_verdict() -> None:
    triage = Triage(FullVerifier(llama()).model)
    assert triage(PROMPT, [1, 2, 3], [1, 2, 3]) is None
    assert triage(PROMPT, [], []) is None


@pytest.mark.parametrize(
    ("value", "dtype", "unit"),
    [(17.0, BF16, 0.125), (-16.0, BF16, 0.125), (15.9, BF16, 0.0625), (1.0, torch.float32, 2.0**-23)],
)
def test_the_unit_is_the_distance_to_the_next_number(value: float, dtype: torch.dtype, unit: float) -> None:
    assert spacing(value, dtype) == unit
    at = torch.tensor(value, dtype=dtype)
    away = torch.nextafter(at, torch.tensor(torch.inf * value, dtype=dtype))
    assert spacing(at.item(), dtype) == pytest.approx(float((away - at).abs()))


def test_the_unit_of_zero_is_a_number() -> None:
    assert 0 < spacing(0.0, BF16) < 1e-30


@pytest.mark.parametrize(
    ("gap", "error", "kind"),
    [
        (0.0, 0.0, "tie-flip"),
        (0.25, 0.0, "tie-flip"),  # two units of 0.125
        (0.26, 0.0, "bug"),
        (0.26, 1.0, "drift"),
        (1.9, 1.0, "drift"),
        (2.2, 1.0, "bug"),
    ],
)
def test_the_bounds(gap: float, error: float, kind: str) -> None:
    exact_V = logits(20.0, 20.0 - gap, 16.0)
    for plain, other in ((0, 1), (1, 0)):
        found = judge(exact_V, shaken(exact_V, error), 3, plain, other)
        assert (found.kind, found.unit, found.position) == (kind, 0.125, 3)
        assert (found.plain_token, found.other_token, found.top1, found.top2) == (plain, other, 0, 1)
        assert found.margin == found.gap == pytest.approx(gap, abs=1e-5)


def test_rounding_is_twice_the_largest_error_of_the_leading_tokens() -> None:
    exact_V = logits(20.0, 19.0, 16.0)
    assert judge(exact_V, shaken(exact_V, 1.5), 0, 0, 1).rounding == 3.0
    low_V = exact_V.to(BF16)
    low_V[-1] = 5.0  # token 39 of 40 does not lead
    assert judge(exact_V, low_V, 0, 0, 1).rounding < 0.1


def test_two_close_tokens_far_below_the_likeliest_are_a_bug() -> None:
    exact_V = logits(20.0, 10.0, 10.0)
    found = judge(exact_V, exact_V.to(BF16), 0, 1, 2)
    assert (found.kind, found.gap, found.margin) == ("bug", 0.0, 10.0)


def test_a_token_that_does_not_lead_is_a_bug_however_flat_the_law() -> None:
    exact_V = torch.linspace(1.0, 0.9999, 40)
    assert judge(exact_V, exact_V.to(BF16), 0, 0, 20).kind == "tie-flip"
    assert judge(exact_V, exact_V.to(BF16), 0, 0, 39).kind == "bug"


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_a_bug(broken: float) -> None:
    for broken_V in (torch.full((40,), broken), logits(20.0, broken), logits(broken, 20.0)):
        assert judge(broken_V, logits(20.0, 20.0).to(BF16), 0, 0, 1).kind == "bug"


@pytest.mark.parametrize(("shorter", "position"), [(3, 3), (0, 0)])
def test_a_run_that_ends_early_is_a_bug(shorter: int, position: int) -> None:
    verifier = FullVerifier(llama())
    plain = decode(verifier, NullDrafter())
    found = Triage(verifier.model)(PROMPT, plain, plain[:shorter])
    assert found is not None
    assert (found.kind, found.position, found.gap) == ("bug", position, None)
    assert (found.plain_token, found.other_token) == (plain[position], None)
    found = Triage(verifier.model)(PROMPT, plain[:shorter], plain)
    assert found is not None
    assert (found.kind, found.plain_token, found.other_token) == ("bug", None, plain[position])


def test_equal_rows_of_the_head_are_a_tie() -> None:
    module = llama()
    verifier = FullVerifier(module)
    plain = decode(verifier, NullDrafter())
    other = next(token for token in range(97) if token not in plain and token > max(plain[:8]))
    with torch.no_grad():
        module.lm_head.weight[other] = module.lm_head.weight[plain[7]]
    found = Triage(verifier.model)(PROMPT, plain, [*plain[:7], other, *plain[8:]])
    assert found is not None
    assert (found.kind, found.position) == ("tie-flip", 7)
    assert (found.plain_token, found.other_token) == (plain[7], other)
    assert found.gap == found.margin == 0
    assert {found.top1, found.top2} == {plain[7], other}


def test_nearly_equal_rows_of_the_head_are_a_tie() -> None:
    module = llama()
    verifier = FullVerifier(module)
    plain = decode(verifier, NullDrafter())
    other = next(token for token in range(97) if token not in plain)
    with torch.no_grad():  # a scaled row has a logit scaled alike: less than a unit away
        module.lm_head.weight[other] = module.lm_head.weight[plain[7]] * (1 - 2**-8)
    found = Triage(verifier.model)(PROMPT, plain, [*plain[:7], other])
    assert found is not None
    assert found.kind == "tie-flip"
    assert found.gap is not None
    assert 0 < found.gap <= found.unit


@pytest.mark.parametrize("corrupted", ["plain", "other"])
def test_a_corrupted_token_is_a_bug(corrupted: str) -> None:
    module = llama()
    verifier = FullVerifier(module)
    good = decode(verifier, NullDrafter())
    middling = module(torch.tensor([[*PROMPT, *good[:9]]])).logits[0, -1].argsort(descending=True)[6]
    bad = [*good[:9], int(middling), *good[10:]]
    runs = (bad, good) if corrupted == "plain" else (good, bad)
    found = Triage(verifier.model)(PROMPT, *runs)
    assert found is not None
    assert (found.kind, found.position) == ("bug", 9)
    assert found.gap is not None
    assert found.gap > max(2 * found.unit, found.rounding)


def flips(module: LlamaForCausalLM, count: int = 1500) -> Iterator[tuple[list[int], int, int]]:
    """Prompts on which the model's type alone changes the likeliest token: (prompt, in float32, as it is)."""
    exact = llama(len(module.model.layers), torch.float32)
    exact.load_state_dict(module.state_dict())
    prompts = torch.randint(97, (count, 6), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        right, low = exact(prompts).logits[:, -1].argmax(-1), module(prompts).logits[:, -1].argmax(-1)
    for index in (right != low).nonzero()[:, 0].tolist():
        yield prompts[index].tolist(), int(right[index]), int(low[index])


@pytest.mark.parametrize(("dtype", "kinds"), [(BF16, {"tie-flip", "drift"}), (torch.float16, {"tie-flip"})])
def test_what_rounding_really_flips_is_no_bug(dtype: torch.dtype, kinds: set[str]) -> None:
    module = llama(layers=12, dtype=dtype)
    triage = Triage(FullVerifier(module).model)
    found = [triage(prompt, [right], [low]) for prompt, right, low in flips(module)]
    assert kinds <= {mismatch.kind for mismatch in found if mismatch} <= {"tie-flip", "drift"}


def test_drafters_in_low_precision_do_nothing_but_round() -> None:
    verifier = FullVerifier(llama(layers=6))
    triage = Triage(verifier.model)
    prompts = torch.randint(97, (12, 6), generator=torch.Generator().manual_seed(2)).tolist()
    plain = specdec.generate(verifier, NullDrafter(), prompts, NEW)
    for drafter in (NgramDrafter(), EarlyExitDrafter(width=3)):
        drafted = specdec.generate(verifier, drafter, prompts, NEW)
        for row, prompt in enumerate(prompts):
            found = triage(prompt, plain.row(row), drafted.row(row))
            assert found is None or found.kind != "bug", found


def test_a_float32_model_is_replayed_in_float64() -> None:
    verifier = FullVerifier(llama(dtype=torch.float32))
    plain = decode(verifier, NullDrafter())
    found = Triage(verifier.model)(PROMPT, plain, [*plain[:2], (plain[2] + 1) % 97])
    assert found is not None
    assert found.kind == "bug"
    assert 0 < found.rounding < 1e-4
    assert 0 < found.unit < 1e-5


def test_the_model_is_copied_once_and_left_as_it_is() -> None:
    verifier = FullVerifier(llama())
    plain = decode(verifier, NullDrafter())
    copies: list[torch.dtype] = []
    network, upcast = verifier.model.network, verifier.model.network.upcast
    network.upcast = lambda dtype: copies.append(dtype) or upcast(dtype)  # type: ignore[method-assign,func-returns-value]
    triage = Triage(verifier.model)
    assert triage(PROMPT, plain, plain) is None
    assert copies == []
    for position in (1, 2):
        assert triage(PROMPT, plain, plain[:position]) is not None
    assert copies == [torch.float32]
    assert network.dtype == BF16
    assert decode(verifier, NullDrafter()) == plain


def test_a_mismatch_is_ready_for_json() -> None:
    verifier = FullVerifier(llama())
    found = Triage(verifier.model)(PROMPT, [1], [2])
    assert found is not None
    assert json.loads(json.dumps(found.as_dict()))["kind"] == found.kind


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        Triage(FullVerifier(llama()).model)([], [1], [2])
