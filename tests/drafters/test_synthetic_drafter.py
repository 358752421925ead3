"""A synthetic drafter is right exactly where it was made to be."""

from __future__ import annotations

import pytest
import torch

import specdec
from drafters import ModelDrafter, SyntheticDrafter
from specdec import Coupled, Match, Ratio, Result, Sampling
from specdec.runtime.synthetic import SHAPES, successors
from verifiers import FullVerifier

TINY = "synthetic/tiny"
V = SHAPES[TINY].vocab_size
STARTS = [3, 77, 300]


@pytest.fixture(scope="module")
def verifier() -> FullVerifier:
    return FullVerifier(TINY, dtype="float32", device="cpu")


def drafter(agreement: float, **options: object) -> SyntheticDrafter:
    return SyntheticDrafter(TINY, agreement, **{"dtype": "float32", "device": "cpu", **options})  # type: ignore[arg-type]


def predicted(start: int, count: int, length: int, agreed: list[bool]) -> list[int]:
    """Tokens that each round commits, the prompt's first, from the tokens after which the drafter is right."""
    following = successors(V).tolist()
    token, left, rounds = following[start], count - 1, [1]
    while left > 0:
        accepted, end = 0, token
        while accepted < min(length, left - 1) and agreed[end]:
            accepted, end = accepted + 1, following[end]
        token, left = following[end], left - accepted - 1
        rounds.append(accepted + 1)
    return rounds


def committed(result: Result, row: int) -> list[int]:
    return [entry.committed for entry in result.trace.rounds if entry.row == row and entry.committed]


@pytest.mark.parametrize(("agreement", "seed"), [(0, 0), (0.3, 5), (0.8, 0), (0.97, 5), (1, 0)])
@pytest.mark.parametrize("length", [1, 5])
def test_accepts_exactly_where_the_permutations_agree(
    verifier: FullVerifier, agreement: float, length: int, seed: int
) -> None:
    # A whole turn of the cycle: every token is met.
    result = specdec.generate(
        verifier, drafter(agreement, length=length, seed=seed), [[start] for start in STARTS], max_new_tokens=V
    )
    agreed = (successors(V, agreement, seed) == successors(V)).tolist()
    for row, start in enumerate(STARTS):
        assert committed(result, row) == predicted(start, V, length, agreed)
        assert sorted(result.row(row)) == list(range(V))
    assert result.metrics.faults == {}


@pytest.mark.parametrize(("agreement", "expected"), [(0, [1] * 13), (1, [1, 6, 6])])
def test_nothing_and_everything(verifier: FullVerifier, agreement: float, expected: list[int]) -> None:
    result = specdec.generate(verifier, drafter(agreement), [9], max_new_tokens=13)
    assert committed(result, 0) == expected


@pytest.mark.parametrize("rule", [Ratio(), Match(), Coupled()])
def test_sampling_changes_nothing(verifier: FullVerifier, rule: Ratio) -> None:
    greedy, sampled = (
        specdec.generate(
            verifier, drafter(0.6), [9], max_new_tokens=60, sampling=Sampling(temperature), acceptance=rule
        )
        for temperature in (0.0, 1.0)
    )
    assert sampled.row() == greedy.row() and committed(sampled, 0) == committed(greedy, 0)


def test_needs_nothing_of_the_target_and_repeats_itself() -> None:
    one, two = (drafter(0.5, seed=3).model.network.module.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_bfloat16_and_a_tree_keep_the_tokens() -> None:
    verifier = FullVerifier(TINY, dtype="bfloat16", device="cpu")
    plain = specdec.generate(verifier, drafter(0), [9], max_new_tokens=40)
    tree = specdec.generate(
        verifier, drafter(0.8, dtype="bfloat16", width=3, nodes=9, length=3), [9], max_new_tokens=40
    )
    assert tree.row() == plain.row() and tree.metrics.rounds < plain.metrics.rounds


def test_a_plain_model_drafter_can_take_one_too(verifier: FullVerifier) -> None:
    result = specdec.generate(verifier, ModelDrafter(TINY, device="cpu"), [9], max_new_tokens=13)
    assert committed(result, 0) == [1, 6, 6]


def test_another_vocabulary_is_refused(verifier: FullVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    small = type(SHAPES[TINY])(64, 128, 2, 4, 2, head_dim=16, vocab_size=400)
    monkeypatch.setitem(SHAPES, "synthetic/small", small)
    other = SyntheticDrafter("synthetic/small", device="cpu")
    with pytest.raises(ValueError, match=r"vocabulary \(400 ids\) is not the target's \(512 ids\)"):
        specdec.generate(verifier, other, [9])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "synthetic/qwen4-8b"}, "no model 'synthetic/qwen4-8b': choose among synthetic/tiny, "),
        ({"model": "smollm2-135m-instruct"}, "no model 'smollm2-135m-instruct': choose among synthetic/tiny, "),
        ({"model": TINY, "agreement": 1.2}, "agreement must be from 0 to 1, not 1.2"),
        ({"model": TINY, "length": 0}, "length must be at least 1"),
        ({"model": TINY, "width": 0}, "width and nodes must be at least 1"),
    ],
)
def test_what_cannot_be_made(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SyntheticDrafter(**options, device="cpu")  # type: ignore[arg-type]
