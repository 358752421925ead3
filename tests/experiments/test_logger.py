"""What is sent elsewhere, and that nothing is imported for it without need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_report import PLAIN, arm

from experiments.logger import COLUMNS, NoLogger, WandbLogger, figures

SUMMARIES = [PLAIN, arm("ngram", 1.4, 1.3, 1.5, identical=None)]


class Wandb(SimpleNamespace):
    """Stands in for the package."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.logged: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.finished = False
        self.steps: list[tuple[int, dict[str, Any]]] = []

    def init(self, **options: Any) -> SimpleNamespace:
        self.options = options
        return SimpleNamespace(summary=self.summary, log=self.log, finish=self.finish)

    def log(self, found: dict[str, Any], step: int | None = None) -> None:
        self.logged.update(found)
        if step is not None:
            self.steps.append((step, found))

    def setup(self, settings: dict[str, Any]) -> None:
        assert settings["silent"]

    def finish(self) -> None:
        self.finished = True

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802
        return options

    def Table(self, columns: list[str], data: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:  # noqa: N802
        return columns, data

    def Image(self, path: str) -> str:  # noqa: N802
        return path


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_logs_figures_table_and_plot(wandb: Wandb, tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"")
    WandbLogger("p", "offline").log({"seed": 3}, SUMMARIES, tmp_path)
    assert wandb.options["project"] == "p" and wandb.options["mode"] == "offline"
    assert wandb.options["config"] == {"seed": 3} and wandb.options["dir"] == str(tmp_path)
    assert wandb.summary["ngram/speedup"] == 1.4 and wandb.summary["ngram/speedup_low"] == 1.3
    assert wandb.summary["plain/identical"] == 1 and wandb.summary["ngram/identical"] is None
    columns, rows = wandb.logged["arms"]
    assert columns == list(COLUMNS) and [row[:3] for row in rows] == [
        ["plain", 36.81, 1.0],
        ["ngram", 36.81, 1.4],
    ]
    assert wandb.logged["plot"] == str(tmp_path / "plot.png") and wandb.finished


def test_a_training_has_curves_that_go_on_when_it_does(wandb: Wandb, tmp_path: Path) -> None:
    with WandbLogger("p").curves({"steps": 2}, tmp_path) as curve:
        curve(1, {"loss": 2.0})
    first = wandb.options
    with WandbLogger("p").curves({"steps": 2}, tmp_path) as curve:
        curve(2, {"loss": 1.0})
    assert wandb.steps == [(1, {"loss": 2.0}), (2, {"loss": 1.0})] and wandb.finished
    assert wandb.options["id"] == first["id"] and first["resume"] == "allow" and first["config"] == {"steps": 2}
    with WandbLogger("p").curves({}, tmp_path / "other"):
        assert wandb.options["id"] != first["id"]
    with NoLogger().curves({}, tmp_path) as curve:
        curve(1, {"loss": 2.0})


def test_every_column_has_a_figure() -> None:
    assert tuple(figures(PLAIN)) == COLUMNS[1:]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        WandbLogger("p")


def test_none_needs_nothing(tmp_path: Path) -> None:
    NoLogger().log({}, SUMMARIES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wandb_is_imported_only_when_asked_for() -> None:
    code = "import sys, experiments.session; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
