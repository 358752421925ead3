"""Did two runs give the same tokens? ``python -m experiments.compare FOLDER FOLDER``, exit status 1 if not."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
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
        missing: what one run alone has answered, as "prompt, turn, folder".
    """

    arm: str
    replies: int
    differ: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether both runs have the same replies."""
        return not self.differ and not self.missing

    def __str__(self) -> str:
        same = f"{self.arm}: {self.replies - len(self.differ)} of {self.replies} replies have the same tokens"
        return "\n  ".join((same, *self.differ, *self.missing))


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
    alone = [(key, first) for key in one if key not in other] + [(key, second) for key in other if key not in one]
    counts = Counter(arm for *_, arm in both)
    return [
        Comparison(arm, counts[arm], tuple(differences(one, other, arm)), tuple(missing(alone, arm)))
        for arm in dict.fromkeys(arm for *_, arm in [*one, *other])
    ]


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


def missing(alone: Sequence[tuple[Key, Path]], arm: str) -> list[str]:
    """Which replies of an arm are in one folder alone."""
    return [f"{id}, turn {turn}, is in {folder} alone" for (id, turn, name), folder in alone if name == arm]


def main() -> None:
    """Print a line per arm; exit status 1 where replies differ or are missing, 2 for what cannot be compared."""
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
    raise SystemExit(not all(comparison.same for comparison in found))


if __name__ == "__main__":
    main()
