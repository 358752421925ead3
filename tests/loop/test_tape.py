"""The stand-in for a CUDA graph does what a graph does: the same launches, on what then lies in their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recorded import Operations

from specdec.runtime.held import flatten


def recorded(part, *arguments):
    leaves: list[torch.Tensor] = []
    return Operations(part, flatten(arguments, leaves), leaves), leaves


def test_what_is_played_again_reads_and_writes_what_is_there_by_then():
    kept, calls = torch.zeros(4), []

    def part(x, index):
        calls.append(len(calls))
        made = torch.arange(4.0) * x
        kept.scatter_(0, index, made[:1])  # as keys are written to a cache
        first, second = made.split(2)
        first += len(calls)  # in place, and through a view
        return {"made": made, "kept": kept[1:], "both": torch.cat([second, first])}

    play, _ = recorded(part, torch.tensor(1), torch.tensor([0]))
    for x, index in ((2, 1), (3, 2)):
        kept.fill_(7)
        result = play([torch.tensor(x), torch.tensor([index])])
        assert result["made"].tolist() == [1, x + 1, 2 * x, 3 * x], "what Python counted stays what it was"
        assert result["both"].tolist() == [2 * x, 3 * x, 1, x + 1]
        expected = [7.0] * 4
        expected[index] = 0.0
        assert kept.tolist() == expected and result["kept"].tolist() == expected[1:]
    assert calls == [0], "no Python runs again"


@pytest.mark.parametrize(
    "read",
    [
        lambda x: int(x[0]),
        lambda x: x[0].item(),
        lambda x: bool(x.any()),
        lambda x: torch.equal(x, x),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x[x.to(torch.uint8)],
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: np.asarray(x),
    ],
    ids=["int", "item", "branch", "equal", "shape", "mask", "byte mask", "list", "cpu", "numpy", "array"],
)
def test_what_the_host_would_have_to_wait_for_cannot_be_recorded(read):
    with pytest.raises(RuntimeError, match="reads a number on the host"):
        recorded(lambda x: torch.zeros(2) if read(x) is not None else x, torch.ones(2, dtype=torch.int64))
