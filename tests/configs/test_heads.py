"""Every head in conf/head/ composes, learns from the target's states, drafts and writes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn

import specdec
from drafters.trainable import FrozenTarget, checked, taps_of
from experiments.run import CONF
from experiments.train import check
from experiments.train_build import fresh
from experiments.train_checks import drafter_maker
from verifiers import FullVerifier

TOY = Path(__file__).parents[1] / "toy_conf"
HEADS = sorted(str(f.relative_to(CONF / "head").with_suffix("")) for f in (CONF / "head").rglob("*.yaml"))
ROWS, SLOTS = 2, 12
PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def verifier(tiny_model_dir: Path) -> FullVerifier:
    return FullVerifier(tiny_model_dir, dtype="float32", device="cpu")


@pytest.fixture(params=["toy", *HEADS])
def config(request: pytest.FixtureRequest, tiny_model_dir: Path) -> Iterator[object]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        search = f"hydra.searchpath=[file://{TOY}]"
        overrides = [search, f"head={request.param}", f"target={tiny_model_dir}", "device=cpu", "dtype=float32"]
        yield compose("train", overrides)


def losses(head: nn.Module, verifier: FullVerifier, wanted_BS: Tensor) -> dict[str, Tensor]:
    target, noise = FrozenTarget(verifier.model.network), torch.Generator().manual_seed(1)
    hidden = target.head_weight.shape[1]
    states = {tap: torch.randn(ROWS, SLOTS, hidden, generator=noise) for tap in taps_of(head, target)}
    tokens_BS = torch.randint(target.vocab_size, (ROWS, SLOTS), generator=noise)
    return checked(head).losses(states, tokens_BS, wanted_BS, target)


def test_a_head_keeps_to_the_protocol(config: object, verifier: FullVerifier, tmp_path: Path) -> None:
    check(config)
    verifier.model.network.module.requires_grad_(False)
    head = fresh(config, verifier)
    wanted_BS = torch.zeros(ROWS, SLOTS, dtype=torch.bool)
    wanted_BS[:, 3:-1] = True
    found = losses(head, verifier, wanted_BS)
    assert found and all(loss.dim() == 0 and torch.isfinite(loss) for loss in found.values())
    sum(found.values()).backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in head.parameters())
    one_BS = torch.zeros_like(wanted_BS)
    one_BS[0, 4] = True  # nothing can be foretold from it
    assert all(torch.isfinite(loss) for loss in losses(head, verifier, one_BS).values())
    checked(head).save(tmp_path)
    assert any(tmp_path.iterdir())
    make = drafter_maker(config.head.drafter)
    if make is None:  # it is not to draft
        return
    result = specdec.generate(verifier, make(head.eval()), PROMPTS, 12)
    assert not result.metrics.faults and result.metrics.drafted_tokens > 0
    if "toy_head" not in config.head.drafter._target_:  # what was written drafts the same
        again = specdec.generate(verifier, make(tmp_path), PROMPTS, 12)
        assert again.metrics.positions == result.metrics.positions
