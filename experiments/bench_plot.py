"""The bench as one picture: steps against their floor, chains of the drafter, milliseconds per token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.arms import PLAIN
from experiments.bench_figures import Figures
from experiments.bench_steps import Curve
from experiments.plot import COLOURS, GREY, MARKERS

OURS, PEERS = COLOURS[0], COLOURS[1]


def save_bench_plot(
    path: Path, title: str, targets: Sequence[Curve], drafts: Sequence[Curve], arms: Sequence[Figures]
) -> None:
    """Draw the curves of the target and the drafter, and the bars of all arms, into a PNG file."""
    figure = Figure(figsize=(14, max(4.6, 2.2 + 0.42 * len(arms))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    left.set_xscale("log", base=2)  # first: it would replace the ticks
    draw_curves(left, targets, [1] * max(len(curve.milliseconds) for curve in targets))
    left.set_xlabel("tokens per step")
    left.set_title("A step of the target", loc="left")
    draw_curves(middle, drafts, sorted(drafts[0].milliseconds))
    middle.set_xlabel("tokens drafted")
    middle.set_title("A chain of the drafter", loc="left")
    draw_arms(right, arms)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def draw_curves(axes: Axes, curves: Sequence[Curve], steps: Sequence[int]) -> None:
    """Milliseconds by size, one line per context, and dashed the floor of so many steps at each size."""
    for index, curve in enumerate(curves):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        sizes = sorted(curve.milliseconds)
        times = [curve.milliseconds[size] for size in sizes]
        axes.plot(sizes, times, color=colour, marker=marker, ms=6, label=f"context {curve.context:,}")
        floor = [curve.floor_ms * count for count in steps]
        axes.plot(sizes, floor, color=colour, ls="--", lw=1)
    axes.plot([], [], color=GREY, ls="--", lw=1, label="bytes over copy bandwidth")
    axes.set_xticks(sorted(curves[0].milliseconds), map(str, sorted(curves[0].milliseconds)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)


def draw_arms(axes: Axes, arms: Sequence[Figures]) -> None:
    """Milliseconds per token of every arm; a tick marks the same with prefill."""
    longest = max(max(arm.decode_ms_per_token, arm.wall_ms_per_token) for arm in arms)
    for row, arm in enumerate(arms):
        colour = GREY if arm.name == PLAIN else PEERS if arm.target_ms is None else OURS
        axes.barh(row, arm.decode_ms_per_token, height=0.62, color=colour, alpha=0.85)
        axes.plot(arm.wall_ms_per_token, row, color="black", marker="|", ms=12, ls="")
        label = f"{arm.decode_ms_per_token:.2f} ms  {arm.speedup:.2f}×"
        if arm.predicted_from_parts is not None:
            label += f" (parts: {arm.predicted_from_parts:.2f}×)"
        place = (max(arm.decode_ms_per_token, arm.wall_ms_per_token), row)
        axes.annotate(label, place, (8, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.8 * longest)
    axes.set_xlabel("ms per token, after prefill (bar) and with it (tick)")
    axes.set_title("Decoding, and speedup over plain", loc="left")
