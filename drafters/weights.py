"""Where a trained head lies: at a path, or in a folder that is shipped beside the code."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent / "trained"


def located(name: str | Path) -> Path:
    """The file or directory that a name stands for.

    Args:
        name: a path, which comes first where it exists, or a head that is shipped: ``<target>/<head>``, such as
            ``smollm2-135m-instruct/eagle3``, in capitals or not.

    Raises:
        FileNotFoundError: there is neither; it says which heads are shipped.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    heads = shipped()
    found = heads.get(path.as_posix().lower())
    if found is None:
        raise FileNotFoundError(
            f"there are no weights at {path}: name a directory or file of a trained head"
            + (f", or one that is shipped: {', '.join(heads)}" if heads else "")
        )
    return found


def shipped() -> dict[str, Path]:
    """Folders of the heads that are shipped, by their names in lower case, in order."""
    folders = sorted(config.parent for config in SHIPPED.rglob("config.json"))
    return {folder.relative_to(SHIPPED).as_posix().lower(): folder for folder in folders}
