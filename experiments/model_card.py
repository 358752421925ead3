"""The model card of a trained head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.folder import flat
from experiments.train_checks import Found

# Where things lay on a machine is nobody else's business.
PLACES = ("hydra.", "out", "cache", "resume", "device", "logger", "prompts")


def card(
    target: str, found: Found, data: Mapping[str, Any], config: Mapping[str, Any], origin: Mapping[str, Any]
) -> str:
    """Markdown.

    Args:
        target: the model that the head drafts for.
        found: its last check.
        data: what it learnt from, by what a line is called.
        config: the resolved configuration.
        origin: see ``provenance``.
    """
    recipe = {name: value for name, value in flat(dict(config)).items() if not name.startswith(PLACES)}
    revision = origin["git"] or {"revision": "unknown", "dirty": False}
    versions = ", ".join(f"{name} {value}" for name, value in origin["versions"].items() if value)
    depths = ", ".join(f"{share:.3f}" for share in found.by_depth) or "none drafted"
    return "\n".join(
        [
            "---",
            f"base_model: {target}",
            "library_name: specdec",
            "tags: [speculative-decoding]",
            "---",
            f"# A draft head for {target}",
            "Trained by `specdec-train` on the target's own replies. Drafts change how fast it decodes, not what.",
            "",
            "## Measured",
            f"On held-out prompts, greedy, on {origin['device']} in {origin['dtype']}:",
            "",
            "| | |",
            "|---|---|",
            f"| tokens per forward of the target | {found.accepted:.3f} (plain decoding is 1) |",
            f"| accepted by depth, if all before were | {depths} |",
            *(f"| held-out loss `{name}` | {value:.4f} |" for name, value in found.losses.items()),
            "",
            "## Data",
            *(f"- {name}: {value}" for name, value in data.items()),
            "",
            "## Recipe",
            "```yaml",
            *(f"{name}: {value}" for name, value in recipe.items()),
            "```",
            f"`{origin['command']}`",
            "",
            f"Revision {revision['revision']}{', with changes' if revision['dirty'] else ''}; {versions}; "
            f"{origin['date']}.",
            "",
        ]
    )


def names_of(prompts: list[str]) -> str:
    """Files of prompts, without where they lay."""
    return ", ".join(Path(file).name for file in prompts)
