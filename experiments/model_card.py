"""The model card of a trained head."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.folder import flat
from experiments.train_checks import Found

PLACES = ("hydra.", "out", "cache", "resume", "device", "logger", "prompts")


def card(found: Found, data: Mapping[str, Any], config: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Markdown.

    Args:
        found: its last check.
        data: what it learnt from, by what a line is called.
        config: the resolved configuration.
        origin: see ``provenance``.
    """
    target, values = called(config["target"]), flat(dict(config))
    hidden = (*PLACES, "target", "verifier.")
    known = {name: value for name, value in values.items() if value != "???" and not name.startswith(hidden)}
    recipe = {name: called(value) if isinstance(value, str) else value for name, value in known.items()}
    revision = origin["git"] or {"revision": "unknown", "dirty": False}
    versions = ", ".join(f"{name} {value}" for name, value in origin["versions"].items() if value)
    return "\n".join(
        [
            "---",
            f"base_model: {target}",
            "library_name: specdec",
            "tags: [speculative-decoding]",
            "---",
            f"# A {'' if found.accepted is None else 'draft '}head for {target}",
            "Trained by `specdec-train` on the target's own replies. Drafts change how fast it decodes, not what.",
            "",
            "## Measured",
            f"On held-out prompts, greedy, on {origin['device']} in {origin['dtype']}:",
            "",
            "| | |",
            "|---|---|",
            *drafted(found),
            *(f"| held-out loss `{name}` | {value:.4f} |" for name, value in found.losses.items()),
            "",
            "## Data",
            *(f"- {name}: {value}" for name, value in data.items()),
            "",
            "## Recipe",
            "```yaml",
            *(f"{name}: {value}" for name, value in recipe.items()),
            "```",
            f"`{typed(origin['command'])}`",
            "",
            f"Revision {revision['revision']}{', with changes' if revision['dirty'] else ''}; {versions}; "
            f"{origin['date']}.",
            "",
        ]
    )


def drafted(found: Found) -> list[str]:
    """What a head is worth that drafts."""
    if found.accepted is None:
        return []
    depths = ", ".join(f"{share:.3f}" for share in found.by_depth) or "none drafted"
    return [
        f"| tokens per forward of the target | {found.accepted:.3f} (plain decoding is 1) |",
        f"| accepted by depth, if all before were | {depths} |",
    ]


def sources(files: Sequence[str]) -> str:
    """What the target was asked. Of files only the names: where they lay is nobody else's business."""
    names = ", ".join(Path(file).name for file in files) or "the project's own"
    return f"{names}; code of the Python standard library"


def called(name: str) -> str:
    """The name of a target or a file; of a path that is there the last part."""
    return Path(name).name if name and Path(name).expanduser().exists() else name


def typed(command: str) -> str:
    """A command without places: of paths only the names."""
    hidden = tuple(place for place in PLACES if place != "prompts")
    return shlex.join(placeless(word) for word in shlex.split(command) if not word.startswith(hidden))


def placeless(word: str) -> str:
    """An override whose value, or each part of a list, is the name of what it leads to."""
    name, equals, value = word.partition("=")
    return name + equals + re.sub(r"[^\[\],]+", lambda part: called(part[0]), value)
