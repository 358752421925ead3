"""A results folder holds one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.folder import Folder, differences, flat, write_json

BASE: dict[str, Any] = {
    "target": "t",
    "verifier": {"model": "${target}"},
    "drafter": {"length": 3, "nodes": None},
    "data": {"path": "/here", "limit": 2},
    "logger": {"mode": "offline"},
}


def config(**changes: Any) -> DictConfig:
    return OmegaConf.merge(OmegaConf.create(BASE), OmegaConf.create(changes))  # type: ignore[return-value]


def started(path: Path) -> Folder:
    folder = Folder(path)
    folder.open(config())
    folder.results.write_text("{}\n")
    return folder


def test_keeps_the_resolved_configuration(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "new" / "run")
    folder.open(config())
    assert "model: t\n" in folder.config.read_text()


@pytest.mark.parametrize(
    "changes", [{}, {"data": {"path": "/there"}}, {"logger": {"mode": "online", "project": "p"}}]
)
def test_goes_on(tmp_path: Path, changes: dict[str, Any]) -> None:
    started(tmp_path).open(config(**changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"drafter": {"length": 4}}, "drafter.length: 3 then, 4 now"),
        ({"drafter": {"nodes": 5}}, "drafter.nodes: None then, 5 now"),
        ({"data": {"limit": 3}}, "data.limit: 2 then, 3 now"),
        ({"seed": 1}, "seed: not set then, 1 now"),
        ({"target": "u"}, "target: t then, u now; verifier.model: t then, u now"),
        ({"drafter": {"length": 3.5, "width": None}}, "length: 3 then, 3.5 now; drafter.width: not set then"),
    ],
)
def test_refuses_another_configuration(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    folder = started(tmp_path)
    before = folder.config.read_text()
    with pytest.raises(ValueError, match="results of another configuration") as caught:
        folder.open(config(**changes))
    assert told in str(caught.value) and folder.config.read_text() == before


def test_refuses_results_that_came_without_a_configuration(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.config.unlink()
    with pytest.raises(ValueError, match="target: not set then, t now"):
        folder.open(config())


def test_a_folder_without_results_may_change(tmp_path: Path) -> None:
    folder = started(tmp_path)
    folder.results.unlink()
    folder.open(config(seed=1))
    assert OmegaConf.load(folder.config).seed == 1


def test_provenance_of_every_part_of_the_run(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for number in range(3):
        folder.write_provenance({"number": number})
    assert OmegaConf.load(folder.provenance) == {"number": 0, "resumed": [{"number": 1}, {"number": 2}]}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    write_json(tmp_path / "some" / "where" / "found.json", {"found": 1})
    assert json.loads((tmp_path / "some" / "where" / "found.json").read_text()) == {"found": 1}


def test_lists_and_empty_mappings_count() -> None:
    assert flat({"a": {"b": [1], "c": {}}}) == {"a.b": [1], "a.c": {}}
    assert differences(OmegaConf.create({"a": [1]}), OmegaConf.create({"a": [1, 2]})) == [
        "a: [1] then, [1, 2] now"
    ]
