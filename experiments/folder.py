"""The results folder of a run, and whether a run may go on in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specdec import Trace, perfetto

# They change neither tokens nor timings: a data file may have moved, a logger comes after the fact.
FREE = ("data.path", "logger")


class Folder:
    """Files of one run: results.jsonl, summary.json, config.yaml, provenance.json, trace.json, plot.png."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results, self.plot = path / "results.jsonl", path / "plot.png"
        self.config, self.provenance = path / "config.yaml", path / "provenance.json"
        self.summary, self.trace = path / "summary.json", path / "trace.json"

    def open(self, config: DictConfig) -> None:
        """Keep the resolved configuration of a new run; check that of a run that goes on.

        Raises:
            ValueError: the folder holds results of another configuration.
        """
        if self.results.exists():
            stored = OmegaConf.load(self.config) if self.config.exists() else OmegaConf.create()
            changes = differences(stored, config)
            if changes:
                raise ValueError(
                    f"{self.path} holds results of another configuration ({'; '.join(changes)}): "
                    "pass the same values as then, or another hydra.run.dir"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, self.config, resolve=True)

    def write_provenance(self, found: dict[str, Any]) -> None:
        """Store where the results come from; what a continued run adds is kept beside the first."""
        first = json.loads(self.provenance.read_text()) if self.provenance.exists() else None
        whole = found if first is None else {**first, "resumed": [*first.get("resumed", ()), found]}
        write_json(self.provenance, whole)

    def write_traces(self, traces: Mapping[str, Trace]) -> None:
        """Store what happened when, by arm, for ui.perfetto.dev; a continued run keeps what is there."""
        if traces and not self.trace.exists():
            perfetto.save(self.trace, traces)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Store the aggregated figures."""
        write_json(self.summary, summary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write readable JSON whole or not at all; a folder that is missing is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)


def differences(stored: Any, config: DictConfig, free: tuple[str, ...] = FREE) -> list[str]:
    """Values that two configurations do not share, in words; keys that begin as one of ``free`` may differ."""
    before, now = flat(OmegaConf.to_container(stored, resolve=True)), flat(resolved(config))
    keys = [key for key in {**before, **now} if not key.startswith(free)]
    return [
        f"{key}: {before.get(key, 'not set')} then, {now.get(key, 'not set')} now"
        for key in keys
        if before.get(key, ...) != now.get(key, ...)
    ]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if not isinstance(node, dict) or not node:
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def resolved(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain values."""
    container: Any = OmegaConf.to_container(config, resolve=True)
    return container
