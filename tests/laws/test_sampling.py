"""The law that is decoded equals Hugging Face's logits processors, and bad settings are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specdec import Sampling, tree
from specdec.sampling import seen_along, seen_tokens

V = 50


def reference(logits, tokens, sampling):
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(tokens, logits).softmax(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 500},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.3},
    ],
    ids=repr,
)
def test_equals_hugging_face(options):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, V, generator=generator)
    tokens = torch.randint(V, (40, 12), generator=generator)
    seen = seen_tokens(tokens, torch.full((40,), 12), V)
    sampling = Sampling(**options)
    torch.testing.assert_close(sampling.law(logits, seen), reference(logits, tokens, sampling))


def test_greedy_is_a_point_mass_on_the_first_maximum():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]], dtype=torch.bfloat16)
    assert Sampling().law(logits).tolist() == [[0, 1, 0, 0]]


def test_greedy_with_a_penalty_sees_what_occurred():
    logits = torch.tensor([[1.0, 3.0, 2.9]])
    seen = torch.tensor([[False, True, False]])
    assert Sampling(repetition_penalty=1.2).law(logits, seen).tolist() == [[0, 0, 1]]


def test_padding_is_not_seen():
    tokens = torch.tensor([[4, 5, 0, 0], [1, 2, 3, 9]])
    seen = seen_tokens(tokens, torch.tensor([2, 3]), 10)
    assert [row.nonzero().flatten().tolist() for row in seen] == [[4, 5], [1, 2, 3]]


def test_each_node_sees_its_own_path():
    parents = torch.tensor([[-1, 0, 0, 2]])
    tokens = torch.tensor([[3, 4, 5, 6]])
    seen = seen_along(torch.tensor([[True] + 9 * [False]]), tokens, tree.ancestors(parents))
    paths = [row.nonzero().flatten().tolist() for row in seen[0]]
    assert paths == [[0], [0, 3], [0, 3, 4], [0, 3, 5], [0, 3, 5, 6]]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, word):
    with pytest.raises(ValueError, match=word):
        Sampling(**options)


def test_a_penalty_without_what_was_seen_is_an_error():
    with pytest.raises(ValueError, match="seen"):
        Sampling(repetition_penalty=1.1).law(torch.zeros(1, 3))
