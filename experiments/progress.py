"""What is told to who waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def say(console: Console, line: str) -> None:
    """Print a line as it stands."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(console: Console, what: str, size: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left; yields what moves it on by a number."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Parts differ a lot: only a long memory gives a steady estimate.
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        task = progress.add_task(what, total=size, completed=done)
        yield lambda count: progress.advance(task, count)
