"""Several rows in one batch against the same rows one after another, with prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import specdec
from experiments.bench_arms import OurArm
from experiments.bench_steps import text
from experiments.stopwatch import now


@dataclass(frozen=True)
class RowsFigures:
    """What an arm costs with so many rows.

    Attributes:
        arm: its name.
        rows: in the batch, each with a prompt of another length.
        ms_per_token: wall time of a generation, prefill included, per new token of all rows; the median.
        one_by_one_ms_per_token: the same for the same rows, decoded one after another.
        tokens_equal: of how many rows the tokens are the same in both.
    """

    arm: str
    rows: int
    ms_per_token: float
    one_by_one_ms_per_token: float
    tokens_equal: int

    @property
    def gain(self) -> float:
        """How many times faster the batch is."""
        return self.one_by_one_ms_per_token / self.ms_per_token


def ragged(vocabulary: int, rows: int, longest: int) -> list[list[int]]:
    """A prompt for every row, the first as long as said and the last half as long."""
    cut = longest // 2 // max(1, rows - 1)
    return [text(vocabulary, max(1, longest - row * cut), row) for row in range(rows)]


def compare_rows(
    arms: Sequence[OurArm], sizes: Sequence[int], longest: int, new_tokens: int, repeats: int
) -> list[RowsFigures]:
    """Every arm with every number of rows.

    Args:
        arms: which.
        sizes: numbers of rows.
        longest: tokens of the longest prompt.
        new_tokens: per row.
        repeats: timed generations of each batch.
    """
    return [row_figures(arm, rows, longest, new_tokens, repeats) for arm in arms for rows in sizes]


def row_figures(arm: OurArm, rows: int, longest: int, new_tokens: int, repeats: int) -> RowsFigures:
    """One arm with so many rows. Each way runs once untimed, so that all is compiled and recorded."""
    prompts = ragged(arm.verifier.vocab_size, rows, longest)
    _, together = generated(arm, prompts, new_tokens)
    seconds = median(generated(arm, prompts, new_tokens)[0] for _ in range(repeats))
    generated(arm, prompts[:1], new_tokens)
    single = [generated(arm, [prompt], new_tokens) for prompt in prompts]
    alone = [rows_of_one[0] for _, rows_of_one in single]
    count = 1e3 / (rows * new_tokens)
    return RowsFigures(
        arm.name,
        rows,
        seconds * count,
        sum(taken for taken, _ in single) * count,
        sum(mine == theirs for mine, theirs in zip(together, alone, strict=True)),
    )


def generated(arm: OurArm, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[int]]]:
    """Wall seconds, and the new tokens of every row."""
    device = arm.verifier.device
    start = now(device)
    result = specdec.generate(arm.verifier, arm.drafter, prompts, new_tokens)
    return now(device) - start, [result.row(index) for index in range(len(prompts))]
