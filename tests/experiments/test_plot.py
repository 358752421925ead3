"""The picture: every arm is in it, and no text runs out of its panel or over another."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from test_report import PLAIN, arm

from experiments.plot import save_plot
from experiments.summary import ArmSummary

SLOW = arm("early_exit_tree", 0.42, 0.40, 0.44)
FAST = arm("model_tree", 3.77, 2.9, 4.6)
MANY = [PLAIN, SLOW, FAST, *(arm(f"arm{i}", 1 + i / 5, 0.9 + i / 5, 1.2 + i / 5) for i in range(8))]


@pytest.mark.parametrize("summaries", [[PLAIN], [PLAIN, SLOW], [PLAIN, SLOW, FAST], MANY], ids=len)
def test_texts_stay_apart(tmp_path: Path, figures: list[Figure], summaries: list[ArmSummary]) -> None:
    save_plot(tmp_path / "plot.png", "a title " * 12, summaries)
    assert imread(tmp_path / "plot.png").shape[1] > 1500
    (figure,) = figures
    for axes in figure.axes:
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts(axes)]
        for name, box in boxes:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, name
        for (one, first), (two, second) in combinations(boxes, 2):
            assert not first.overlaps(second), f"{one!r} over {two!r}"
    for text in figure.axes[0].texts:
        assert text.get_window_extent().x1 <= figure.axes[0].bbox.x1


def texts(axes: Axes) -> list[Any]:
    """Every text of a panel that is seen: ticks beyond the limits have labels too."""
    found: list[Any] = [*axes.texts, axes.xaxis.label, axes.yaxis.label, axes.title]
    for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        found += [label for place, label in ticks if low <= place <= high]
    return [text for text in found if text.get_text()]


def test_shows_every_arm_and_every_category(tmp_path: Path, figures: list[Figure]) -> None:
    save_plot(tmp_path / "plot.png", "title", [PLAIN, SLOW, FAST])
    left, middle, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "plain",
        "early_exit_tree",
        "model_tree",
    ]
    assert [bar.get_width() for bar in left.patches] == [1, 0.42, 3.77]
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["early_exit_tree", "model_tree"]
    assert len(middle.lines) == 2
    assert [label.get_text() for label in right.get_yticklabels()] == ["mt bench (3)", "math reasoning (3)"]
    assert [list(line.get_xdata()) for line in right.lines[:2]] == [[0.42] * 2, [3.77] * 2]


def test_depths_with_hardly_any_tests_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    rare = replace(SLOW, positions=tuple(replace(depth, tested=3) for depth in SLOW.positions))
    save_plot(tmp_path / "plot.png", "title", [PLAIN, rare])
    assert "nothing was drafted" in [text.get_text() for text in figures[0].axes[1].texts]
