"""What is copied to the inputs of a recording is what was given, whatever its type, size and strides."""

from __future__ import annotations

import pytest
import torch

from specdec.runtime.filling import LITTLE, Filling

VALUES = {
    "one of a column": lambda: [torch.arange(30).view(2, 15)[:1, 3], torch.ones(2, dtype=torch.bool)],
    "many types": lambda: [torch.randn(3, 2), torch.arange(4), torch.rand(5) < 0.5, torch.randn(2).bfloat16()],
    "a column": lambda: [torch.arange(30).view(2, 15)[:, 3], torch.randn(2)],
    "much": lambda: [torch.randn(LITTLE // 4 + 1), torch.arange(3)],
    "no elements": lambda: [torch.zeros(0, 3), torch.arange(3)],
    "a number": lambda: [torch.tensor(3), torch.tensor(0.5)],
}


@pytest.mark.parametrize("case", VALUES)
def test_places_hold_what_was_given(case):
    values = VALUES[case]()
    places = [torch.full_like(value, 1, memory_format=torch.contiguous_format) for value in values]
    fill = Filling(places)
    fill(values)
    assert all(torch.equal(place, value) for place, value in zip(places, values, strict=True))
    for value in values:  # the same tensors with other contents, as results of a recording are
        value.copy_(value * 0 if value.dtype != torch.bool else ~value)
    fill(values)
    assert all(torch.equal(place, value) for place, value in zip(places, values, strict=True))


def test_other_tensors_are_copied_too_and_what_is_in_place_stays():
    place, other = torch.zeros(2, dtype=torch.long), torch.zeros(2)
    fill = Filling([place, other])
    fill([torch.tensor([1, 2]), other])
    fill([torch.tensor([3, 4]), torch.tensor([0.5, 0.25])])
    assert place.tolist() == [3, 4] and other.tolist() == [0.5, 0.25]
