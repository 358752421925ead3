"""Records that prompts are made of: JSON objects, one per line of a file or row of a data set."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class BadRecordError(ValueError):
    """A record that no prompt can be made of. The message says why."""


def find_file(path: str | PathLike[str], names: Sequence[str] = ()) -> Path:
    """The file at `path`, or the first of `names` that exists in the directory at `path`.

    Raises:
        FileNotFoundError: neither is there. The message says what was looked for.
    """
    place = Path(path).expanduser()
    if place.exists() and not place.is_dir():
        return place
    for name in names:
        if (place / name).is_file():
            return place / name
    if not place.exists():
        raise FileNotFoundError(f"there is no file {place}")
    looked_for = f"holds no {' or '.join(names)}" if names else "is a directory: name a file in it"
    raise FileNotFoundError(f"{place} {looked_for}")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file, or of one compressed by gzip, that are not blank, numbered from 1."""
    # Bytes, so that one line of broken UTF-8 does not cost the lines behind it.
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())


def parse(line: bytes) -> Record:
    """One line of JSON as a record.

    Raises:
        BadRecordError: it is not JSON, or not an object.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadRecordError(f"not a JSON object but {type(record).__name__}")
    return record


def hub_rows(name: str, config: str | None, split: str) -> Iterable[Record]:
    """The rows of a data set, loaded through Hugging Face `datasets`.

    Raises:
        OSError: it cannot be loaded, for lack of a connection or of the package.
    """
    try:
        datasets = import_module("datasets")  # here, because prompts from files do not need it
        rows: Iterable[Record] = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # each layer below has its own family of connection errors
        raise OSError(
            f"cannot load {name} ({split}) through Hugging Face datasets: {error}. "
            "To do without, download its JSONL file and pass data.path=<file or directory>"
        ) from error
    return rows


def turns_of(record: Record, fields: Sequence[str]) -> tuple[str, ...]:
    """The user's turns: the first of `fields` that is there, a string or a list of strings.

    Raises:
        BadRecordError: none is there, or a turn is not a text, or empty.
    """
    field = next((name for name in fields if record.get(name) is not None), None)
    if field is None:
        raise BadRecordError(f"no {' or '.join(fields)}")
    value = record[field]
    turns = value if isinstance(value, list) else [value]
    if not turns:
        raise BadRecordError(f"{field} is empty")
    return tuple(_text(turn, field) for turn in turns)


def label_of(record: Record, field: str, default: str | None = None) -> str:
    """An id or a category: a string or a whole number, as a string.

    Raises:
        BadRecordError: the field is something else or empty, or it is missing and there is no default.
    """
    value = record.get(field)
    if value is None:
        value = default
    if value is None:
        raise BadRecordError(f"no {field}")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise BadRecordError(f"{field} is not a string or a number but {type(value).__name__}")
    return _text(str(value), field)


def flag_of(record: Record, field: str, default: bool) -> bool:
    """A field that is true or false.

    Raises:
        BadRecordError: it is something else.
    """
    value = record.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRecordError(f"{field} is not true or false but {value!r}")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise BadRecordError(f"{field} is not a text but {type(value).__name__}")
    if not value.strip():
        raise BadRecordError(f"{field} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
        raise BadRecordError(f"{field} is not valid Unicode ({error.reason})") from error
    return value
