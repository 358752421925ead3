"""A tiny chat model, prompts for it, and the command line in this process."""

from __future__ import annotations

import io
import json
import logging
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from matplotlib.figure import Figure
from tiny_chat import save_tiny_chat

from verifiers import FullVerifier

PROMPTS = [
    {"id": "a", "category": "talk", "turns": ["one two three one two three one two", "and again one two"]},
    {"id": "b", "category": "talk", "turns": ["the cat the cat the cat the"]},
    {"id": "c", "category": "text", "turns": ["the dog ran to the dog ran to"], "chat": False},
]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status, what it said, and where it wrote."""

    status: int
    out: str
    err: str
    folder: Path

    @property
    def said(self) -> str:
        """Both streams, line ends made spaces: how lines are wrapped does not matter."""
        return " ".join((self.out + self.err).split())

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "results.jsonl").read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "summary.json").read_text()))


class Command:
    """`specdec` on a tiny model and its prompts, in this process: call it with overrides."""

    def __init__(self, model: Path, place: Path) -> None:
        self.model, self.place, self.prompts = model, place, place / "prompts.jsonl"
        self.prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))

    def __call__(self, *overrides: str, folder: str = "run") -> Outcome:
        base = ["data=jsonl", f"data.path={self.prompts}", f"target={self.model}", "dtype=float32"]
        base += ["device=cpu", "max_new_tokens=12", f"hydra.run.dir={self.place / folder}"]
        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["specdec", *base, *overrides])
            patch.setenv("COLUMNS", "120")
            patch.setattr("experiments.session.busy", lambda: False)
            status = run_main()
        return Outcome(status, out.getvalue(), err.getvalue(), self.place / folder)


def run_main() -> int:
    """The exit status of the command. Hydra takes the root logger over: it is given back as it was."""
    from experiments.run import main

    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    torch.set_num_threads(1)  # tiny models spend more time on handing work to threads than on the work
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        torch.set_num_threads(threads)
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    return 0


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def verifier(tiny_model_dir: Path) -> FullVerifier:
    return FullVerifier(tiny_model_dir, dtype="float32", device="cpu")


@pytest.fixture
def command(tiny_model_dir: Path, tmp_path: Path) -> Command:
    return Command(tiny_model_dir, tmp_path)


@pytest.fixture(scope="session")
def default_run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The default job, run once and only read."""
    return Command(tiny_model_dir, tmp_path_factory.mktemp("default"))()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        saved.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved
