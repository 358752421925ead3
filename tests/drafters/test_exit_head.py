"""Exits in training: their loss and its gradient, where they begin, and the file that forecasts read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import LAYERS, llama
from torch import Tensor

from drafters.exit_head import ExitHead
from drafters.trainable import FrozenTarget
from specdec import Tap
from specdec.exit import Exit
from specdec.runtime import load
from specdec.translator import facts, load_translator
from verifiers import FullVerifier

ROWS, SLOTS, X = 2, 7, 32


@pytest.fixture
def module() -> Any:
    return llama().requires_grad_(False)


@pytest.fixture
def target(module: Any) -> FrozenTarget:
    return FrozenTarget(load(module).model.network)


@pytest.fixture
def text() -> tuple[dict[Tap, Tensor], Tensor, Tensor]:
    """States, tokens and the places that count."""
    noise = torch.Generator().manual_seed(1)
    states = {Tap(layer): torch.randn(ROWS, SLOTS, X, generator=noise) for layer in range(LAYERS + 1)}
    wanted_BS = torch.rand(ROWS, SLOTS, generator=noise) < 0.6
    return states, torch.zeros(ROWS, SLOTS, dtype=torch.int64), wanted_BS


def moved(head: ExitHead) -> ExitHead:
    """With a gated block that gives something."""
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weights in head.exits.values():
            weights["out"].normal_(generator=noise)
    return head


def test_the_loss_is_the_divergence_and_so_is_its_gradient(
    module: Any, target: FrozenTarget, text: tuple[dict[Tap, Tensor], Tensor, Tensor]
) -> None:
    head, (states, _, wanted_BS) = moved(ExitHead.fresh(target, [1, 3], 5)), text
    found = head.losses(*text, target)
    assert set(found) == {"exit 1", "exit 3"} and head.taps(LAYERS) == (Tap(1), Tap(3))

    def law(state_PX: Tensor) -> Tensor:
        return module.lm_head(module.model.norm(state_PX)).log_softmax(-1)

    final_PV = law(states[Tap(LAYERS)][wanted_BS])
    for layer in (1, 3):
        weights = dict(head.exits[str(layer)].items())
        exit_PV = law(head.translators[layer](states[Tap(layer)][wanted_BS]))
        expected = torch.nn.functional.kl_div(exit_PV, final_PV, reduction="batchmean", log_target=True)
        torch.testing.assert_close(found[f"exit {layer}"], expected, rtol=1e-4, atol=1e-5)
        mine = torch.autograd.grad(found[f"exit {layer}"], list(weights.values()))
        for gradient, whole in zip(mine, torch.autograd.grad(expected, list(weights.values())), strict=True):
            torch.testing.assert_close(gradient, whole, rtol=1e-3, atol=1e-5)
    assert all(weight.grad is None for weight in module.parameters())


def test_fresh_exits_change_nothing_and_lie_where_time_is_left(target: FrozenTarget) -> None:
    state = torch.randn(4, X, generator=torch.Generator().manual_seed(1))
    for width in (0, 8):
        head = ExitHead.fresh(target, width=width)
        assert list(head.translators) == [2, 3]
        assert all(torch.equal(translator(state), state) for translator in head.translators.values())
    deep = FrozenTarget(load(llama(num_hidden_layers=30)).model.network)
    assert list(ExitHead.fresh(deep).translators) == [15, 22, 26]


def test_what_is_saved_is_what_a_forecast_reads(target: FrozenTarget, module: Any, tmp_path: Path) -> None:
    head = moved(ExitHead.fresh(target, [3, 1], 5))
    head.save(tmp_path)
    file = tmp_path / "exits.safetensors"
    known, read = facts(file), load_translator(file, 3)
    assert (known["hidden"], known["depth"], known["layers"]) == ("32", "4", "[1, 3]")
    for name, weight in head.translators[3].weights.items():
        assert torch.equal(read.weights[name], weight.to(torch.bfloat16))
    exit = Exit(3, trained=str(file))
    assert exit.of(FullVerifier(module).model) == 3 and exit.map is read


@pytest.mark.parametrize("layers", [[], [0], [LAYERS], [2, 2]])
def test_layers_that_are_none_are_refused(target: FrozenTarget, layers: list[int]) -> None:
    with pytest.raises(ValueError, match="different layers from 1 to 3"):
        ExitHead.fresh(target, layers)
    with pytest.raises(ValueError, match="width"):
        ExitHead.fresh(target, [1], width=-1)
