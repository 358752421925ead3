"""All ways of attention that are timed compute the same."""

from __future__ import annotations

import pytest
import torch

from experiments.attention_study import WAYS, Case, case, flexible, masked, products
from specdec.runtime.sight import Sight

CPU = torch.device("cpu")
DRAFTS = [[], [-1, 0, 1], [-1, -1, 0, 0, 1]]


@pytest.mark.parametrize("way", [masked, products, flexible])
@pytest.mark.parametrize("parents", DRAFTS, ids=str)
def test_every_way_gives_what_the_reference_gives(parents: list[int], way: object) -> None:
    attend_reference = pytest.importorskip("specdec.kernels.attention").attend_reference
    what = case(140, parents, CPU, torch.float32)
    q_WX = what.query[0].transpose(0, 1).reshape(len(parents) + 1, -1)
    expected_WX = attend_reference(q_WX, what.keys, what.values, what.sight, what.query.shape[-1] ** -0.5)
    expected = expected_WX.reshape(len(parents) + 1, -1, what.query.shape[-1]).transpose(0, 1)[None]
    torch.testing.assert_close(way(what)(), expected, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_a_chain_needs_no_order_and_a_tree_does() -> None:
    sights = [case(140, parents, CPU, torch.float32).sight for parents in DRAFTS]
    assert [sight.order is None for sight in sights] == [True, True, False]
    assert isinstance(sights[0], Sight) and set(WAYS) == {"ours", "sdpa", "products", "flex"}
    assert isinstance(case(5, [], CPU, torch.float32), Case)
