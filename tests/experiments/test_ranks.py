"""The two processes that torchrun starts. One is this one; the other is what serves the drafters."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import specdec
from experiments.ranks import interface, placed

ROOT = Path(__file__).resolve().parents[2]
LONG = 60.0  # seconds that nothing here takes
MIRROR = ("forecast=early_exit_topk", "baselines=[]", "warmup=0")
AHEAD = (*MIRROR, "channel=process", "channel.patience=60")


class Pair:
    """The command at the target's side, in this process, and at the drafters' side, in another."""

    def __init__(self, command: Any, patch: pytest.MonkeyPatch) -> None:
        self.command, self.patch = command, patch
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def environment(self, rank: int, size: int = 2) -> dict[str, str]:
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": self.port}
        texts = {key: str(value) for key, value in told.items()}
        return texts | {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}

    def __call__(self, *overrides: str) -> tuple[Any, subprocess.CompletedProcess[str]]:
        base = ["data=jsonl", f"data.path={self.command.prompts}", f"target={self.command.model}", "dtype=float32"]
        other = subprocess.Popen(
            [sys.executable, "-m", "experiments.run", *base, "device=cpu", *overrides],
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment(1)},
            cwd=self.command.place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            for key, value in self.environment(0).items():
                self.patch.setenv(key, value)
            done = self.command(*overrides)
            out, err = other.communicate(timeout=LONG)
        finally:
            other.kill()
        return done, subprocess.CompletedProcess(other.args, other.returncode, out, err)


@pytest.fixture
def pair(command: Any, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(command, monkeypatch)


def left_quietly(other: subprocess.CompletedProcess[str]) -> bool:
    loud = any(word in other.stderr for word in ("Traceback", "WARNING", "error:", "terminate"))
    assert (other.returncode, other.stdout, loud) == (0, "", False), other.stderr
    return True


def said(done: Any, name: str) -> list[Any]:
    """A figure of every reply, or its tokens."""
    replies = sorted(done.lines, key=lambda line: (line["id"], line["turn"], line["arm"]))
    return [line["tokens"] if name == "tokens" else line["metrics"][name] for line in replies]


def test_every_drafter_is_served_by_the_other_process(pair: Pair) -> None:
    done, other = pair(*AHEAD)
    assert done.status == 0, done.said + other.stderr
    assert "are plain decoding's, token for token" in done.said
    assert {line["arm"] for line in done.lines} == {"plain", "ngram", "suffix", "early_exit"}
    assert all(line["metrics"]["faults"] == {} for line in done.lines)
    pair.patch.delenv("TORCHELASTIC_RUN_ID")
    alone = pair.command(*MIRROR, folder="alone")
    for name in ("tokens", "rounds", "mean_accepted_drafts"):
        assert said(done, name) == said(alone, name)
    assert sum(said(done, "mean_accepted_drafts")) > 0
    assert left_quietly(other)
    assert not (pair.command.place / "outputs").exists() and not (pair.command.place / "specdec.log").exists()


def test_ctrl_c_at_the_targets_side_ends_both(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(specdec, "generate", interrupted)
    done, other = pair(*AHEAD, "drafter=ngram")
    assert done.status == 130 and "interrupted; to go on" in done.said
    assert left_quietly(other)


def test_a_drafter_that_cannot_be_made_there_is_told_here(pair: Pair) -> None:
    done, other = pair(*AHEAD, "drafter=ngram", "drafter.length=0", "warmup=1")
    assert done.status == 1 and "the drafter could not be made" in done.said
    assert "length must be at least 1" in done.said
    assert left_quietly(other)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("channel=process",), "pass channel=process and a forecast"),
        (("forecast=draft_topk",), "pass channel=process and a forecast"),
        ((*AHEAD, "channel.address=localhost:1"), "leave channel.address out"),
    ],
)
def test_a_job_with_nothing_for_the_other_side(pair: Pair, overrides: tuple[str, ...], told: str) -> None:
    done, other = pair(*overrides)
    assert done.status == 1 and told in done.said
    assert left_quietly(other)


@pytest.mark.parametrize("size", [1, 3])
def test_there_must_be_two(pair: Pair, size: int) -> None:
    for key, value in pair.environment(0, size).items():
        pair.patch.setenv(key, value)
    done = pair.command(*AHEAD)
    assert done.status == 1
    assert f"torchrun must start 2 processes, one for the target and one for drafters, not {size}" in done.said


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [("auto", True, "cuda:1"), ("auto", False, "auto"), ("cuda:0", True, "cuda:0")],
)
def test_auto_is_the_gpu_of_the_processs_number(
    monkeypatch: pytest.MonkeyPatch, device: str, there: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    config = OmegaConf.create({"device": device, "drafter": {"device": "${device}"}})
    assert placed(config, 1).drafter.device == expected
    assert config.device == device


def test_the_interface_towards_a_host() -> None:
    assert interface("127.0.0.1") == "127.0.0.1"
