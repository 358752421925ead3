"""A result says what it came from."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from experiments import provenance as provenance_module
from experiments.provenance import busy, command, provenance, revision


def git(directory: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(
        ["git", "-C", str(directory), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    (tmp_path / "part").mkdir()
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "m")
    return tmp_path


def test_revision(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert revision(repository) == {"revision": head, "dirty": False}
    (repository / "file").write_text("two")
    assert revision(repository) == {"revision": head, "dirty": True}


def test_someone_elses_repository_says_nothing(repository: Path) -> None:
    assert revision(repository / "part") is None


def test_no_repository(tmp_path: Path) -> None:
    assert revision(tmp_path) is None


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision(tmp_path) is None


def test_the_command_can_be_pasted() -> None:
    overrides = ["baselines=[]", "~drafter.suffix", "data.path=/a b/c$d.jsonl"]
    assert shlex.split(command(overrides)) == ["specdec", *overrides]


@pytest.mark.parametrize(
    ("work", "idle", "told"), [(0, 100, False), (20, 80, False), (30, 70, True), (100, 0, True), (0, 0, False)]
)
def test_a_busy_machine_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, work: int, idle: int, told: bool
) -> None:
    def tick(seconds: float) -> None:
        file.write_text(f"cpu  {500 + work} 7 90 {4000 + idle} 60 0 3 2 0 0\ncpu0 1 1 1 1\n")

    file = tmp_path / "stat"
    file.write_text("cpu  500 7 90 4000 60 0 3 2 0 0\ncpu0 1 1 1 1\n")
    monkeypatch.setattr(provenance_module, "PROCESSORS", file)
    monkeypatch.setattr(provenance_module.time, "sleep", tick)
    assert busy() == told


def test_a_system_that_does_not_say_is_not_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(provenance_module, "PROCESSORS", tmp_path / "none")
    assert not busy(0)


def test_versions_and_machine(verifier: Any) -> None:
    found = json.loads(json.dumps(provenance(["seed=1"], verifier)))
    assert found["command"] == "specdec seed=1" and found["dtype"] == "float32"
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["transformers"] == transformers.__version__
    assert found["threads"] == torch.get_num_threads() and found["cpu"] and found["cpu"] in found["device"]
