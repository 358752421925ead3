"""What a job is made of, where the configuration alone does not say it."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from drafters import EarlyExitDrafter, NgramDrafter, NullDrafter
from experiments.arms import EngineArm, HuggingFaceArm
from experiments.build import arms, forecast_of, widest


def arm(name: str, drafter: Any) -> EngineArm:
    unused: Any = None
    return EngineArm(name, unused, drafter)


def test_the_widest_verification_holds_the_largest_draft() -> None:
    unused: Any = None
    others = [HuggingFaceArm("hf_generate", unused), arm("plain", NullDrafter())]
    assert widest(others) == 1
    assert widest([*others, arm("ngram", NgramDrafter(length=6)), arm("tree", EarlyExitDrafter(width=2))]) == 11


def test_a_drafter_that_does_not_say_is_named() -> None:
    with pytest.raises(ValueError, match="give the drafter of mine a size"):
        widest([arm("plain", NullDrafter()), arm("mine", object())])


def test_a_forecast_without_its_trained_exit_is_an_error_before_the_target_is_loaded() -> None:
    forecast = {"_target_": "specdec.forecast.Blend", "exit": {"_target_": "specdec.exit.Exit", "layer": 22}}
    config = OmegaConf.create({"forecast": forecast})
    assert forecast_of(config) is not None and forecast_of(OmegaConf.create({"forecast": None})) is None
    config.forecast.exit.trained = "Qwen/Qwen3-0.6B"
    with pytest.raises(ValueError, match=r"no trained exits for 'Qwen/Qwen3-0.6B'.*raw exit \(trained=null\)"):
        forecast_of(config)


def test_at_an_address_one_drafter_is_awaited() -> None:
    unused: Any = None
    channel = {"_target_": "specdec.channel.Process", "address": "localhost:29500"}
    parts = {name: {"_target_": f"drafters.{name}"} for name in ("NgramDrafter", "SuffixDrafter")}
    forecast = {"_target_": "specdec.forecast.AllAccepted"}
    config = OmegaConf.create({"channel": channel, "drafter": parts, "forecast": forecast, "baselines": []})
    with pytest.raises(ValueError, match="one drafter is awaited: choose one of NgramDrafter, SuffixDrafter"):
        arms(config, None, unused)
    config.drafter.pop("SuffixDrafter")
    assert [arm.name for arm in arms(config, None, unused)] == ["plain", "NgramDrafter"]
