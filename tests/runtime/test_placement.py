"""Where models are decides how they run, and who can work with whom."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny

import specdec
from drafters import ModelDrafter
from specdec.runtime.loading import pick_device, pick_runtime
from verifiers import FullVerifier

CPU, ONE, OTHER = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("runtime", "devices", "replayed"),
    [
        ("auto", {CPU}, False),
        ("auto", {ONE}, True),
        ("eager", {ONE}, False),
        ("graphed", {ONE}, True),
        ("auto", {ONE, OTHER}, False),
        ("auto", {ONE, CPU}, False),
    ],
)
def test_rounds_are_replayed_on_one_gpu(runtime: str, devices: set[torch.device], replayed: bool) -> None:
    assert pick_runtime(runtime, devices) == replayed


@pytest.mark.parametrize(
    ("runtime", "devices", "told"),
    [
        ("graphed", {CPU}, "needs one GPU, but the model is on cpu: pass runtime=eager or auto"),
        ("graphed", {ONE, CPU}, "on cpu and cuda:0"),
        ("graphed", {ONE, OTHER}, "on cuda:0 and cuda:1"),
        ("fast", {ONE}, "runtime must be one of eager, graphed, auto, not 'fast'"),
    ],
)
def test_a_runtime_that_cannot_be_had_is_refused(runtime: str, devices: set[torch.device], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pick_runtime(runtime, devices)


def test_a_draft_model_on_another_device_is_refused() -> None:
    drafter = ModelDrafter(tiny("Llama").to("meta"))
    with pytest.raises(ValueError, match="the draft model is on meta and the target on cpu"):
        specdec.generate(FullVerifier(FAMILIES["llama"]()), drafter, [1, 2], max_new_tokens=4)


@pytest.mark.parametrize(
    ("asked", "there", "got"),
    [("cuda:1", 1, "cuda:0"), ("cuda:7", 2, "cuda:1"), ("cuda:1", 2, "cuda:1"), ("cuda", 1, "cuda")],
)
def test_the_last_gpu_stands_in_for_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, asked: str, there: int, got: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert str(pick_device(asked)) == got
    warned = [f"there is no {asked} here, {got} takes its place" in text for text in caplog.messages]
    assert warned == ([] if asked == got else [True])
    assert asked == got or "do not overlap" in caplog.text
