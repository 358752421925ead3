"""Did two runs give the same tokens? ``python -m experiments.compare FOLDER FOLDER``, exit status 1 if not."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from experiments.folder import Folder
from experiments.journal import Entry, Journal, Key


@dataclass(frozen=True)
class Comparison:
    """The replies of one arm in two runs.

    Attributes:
        arm: its name.
        replies: prompts and turns that both runs answered.
        differ: where the tokens are not the same, as "prompt, turn, position of the first difference".
    """

    arm: str
    replies: int
    differ: tuple[str, ...]

    def __str__(self) -> str:
        same = f"{self.arm}: {self.replies - len(self.differ)} of {self.replies} replies have the same tokens"
        return "\n  ".join((same, *self.differ))


def compare(first: Path, second: Path) -> list[Comparison]:
    """Compare two results folders arm by arm.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: no arm answered the same prompt in both.
    """
    one, other = replies(first), replies(second)
    both = [key for key in one if key in other]
    if not both:  # else every comparison would be an empty promise
        raise ValueError(f"no arm answered the same prompt in {first} and in {second}")
    counts = Counter(arm for *_, arm in both)
    return [Comparison(arm, count, tuple(differences(one, other, arm))) for arm, count in counts.items()]


def replies(folder: Path) -> dict[Key, Entry]:
    """What was answered, by prompt, turn and arm."""
    path = Folder(folder).results
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {path.name}: give the folder of a run")
    return {entry.key: entry for entry in Journal(path) if entry.error is None}


def differences(one: dict[Key, Entry], other: dict[Key, Entry], arm: str) -> list[str]:
    """Where an arm's tokens are not the same."""
    found = []
    for key, entry in one.items():
        if key[2] == arm and key in other and entry.tokens != other[key].tokens:
            pairs = zip_longest(entry.tokens, other[key].tokens)
            position = next(index for index, (mine, theirs) in enumerate(pairs) if mine != theirs)
            found.append(f"{key[0]}, turn {key[1]}, new token {position}")
    return found


def main() -> None:
    """Print a line per arm; exit status 1 where tokens differ, 2 for folders that cannot be compared."""
    parser = argparse.ArgumentParser(
        "python -m experiments.compare", description="Compare two runs token by token."
    )
    parser.add_argument("folders", nargs=2, type=Path, metavar="FOLDER", help="results folder of a run")
    try:
        found = compare(*parser.parse_args().folders)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for comparison in found:
        print(comparison)
    raise SystemExit(any(comparison.differ for comparison in found))


if __name__ == "__main__":
    main()
