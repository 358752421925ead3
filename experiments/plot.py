"""The figures of a run as one picture: speed, acceptance by depth, speedup by category."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.arms import PLAIN
from experiments.summary import ArmSummary

# Okabe and Ito's colours, which colour-blind readers can tell apart; the grey is plain decoding's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
GREY = "#777777"
MARKERS = "osD^vP*"
DEEPEST = 10
FEWEST_TESTS = 10
SPREAD = 0.4  # of the row that a category takes

Styles = dict[str, tuple[str, str]]  # colour and marker of every arm


def save_plot(path: Path, title: str, summaries: Sequence[ArmSummary]) -> None:
    """Draw the summaries of all arms, plain decoding first, into a PNG file."""
    rows = max(len(summaries), len(summaries[0].categories), 5)
    figure = Figure(figsize=(14, 2.8 + 0.42 * rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    looks = cycle(zip(COLOURS, MARKERS, strict=True))
    styles = {s.arm: (GREY, "|") if s.arm == PLAIN else next(looks) for s in summaries}
    draw_speed(left, summaries, styles)
    draw_acceptance(middle, summaries, styles)
    draw_categories(right, summaries, styles)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    marks = [Line2D([], [], color=styles[s.arm][0], marker=styles[s.arm][1], label=s.arm) for s in summaries[1:]]
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 6), frameon=False)
    figure.savefig(path)


def draw_speed(axes: Axes, summaries: Sequence[ArmSummary], styles: Styles) -> None:
    """Speedup per arm with its interval, and tokens per second beside it."""
    for row, s in enumerate(summaries):
        axes.barh(row, s.speedup, height=0.62, color=styles[s.arm][0], alpha=0.85)
        low, high = s.speedup_interval or (s.speedup, s.speedup)
        if s.arm != PLAIN:
            whiskers = [[s.speedup - low], [high - s.speedup]]
            axes.errorbar(s.speedup, row, xerr=whiskers, color="black", capsize=3, lw=1.2)
        label = f"{s.speedup:.2f}×  {s.tokens_per_second:.1f} tok/s"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        place = (max(high, s.speedup), row)
        axes.annotate(label, place, (8, 0), textcoords="offset points", va="center", bbox=box)
    axes.axvline(1, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(summaries)), [s.arm for s in summaries])
    axes.invert_yaxis()
    # Room for the text behind the longest bar.
    axes.set_xlim(0, 1.6 * max((s.speedup_interval or (0, s.speedup))[1] for s in summaries))
    axes.set_xlabel("speedup over plain decoding")
    axes.set_title("Speed (95 % interval over prompts)", loc="left")


def draw_acceptance(axes: Axes, summaries: Sequence[ArmSummary], styles: Styles) -> None:
    """Share accepted by depth; depths that were hardly ever tested are left out."""
    for s in summaries:
        shown = [d for d in s.positions[:DEEPEST] if d.share is not None and d.tested >= FEWEST_TESTS]
        if shown:
            colour, marker = styles[s.arm]
            shares = [100 * (d.share or 0) for d in shown]
            axes.plot([d.depth for d in shown], shares, color=colour, marker=marker, ms=7, clip_on=False)
    axes.set_ylim(0, 103)
    axes.set_xlabel(f"depth in the draft (with at least {FEWEST_TESTS} tests)")
    axes.set_ylabel("accepted, given that the earlier were (%)")
    axes.set_title("Acceptance by depth", loc="left")
    axes.grid(axis="y", alpha=0.3)
    if axes.lines:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "nothing was drafted", transform=axes.transAxes, ha="center", color=GREY)


def draw_categories(axes: Axes, summaries: Sequence[ArmSummary], styles: Styles) -> None:
    """Speedup by category, one mark per arm, those of one category a little apart."""
    categories, others = summaries[0].categories, summaries[1:]
    for index, s in enumerate(others):
        colour, marker = styles[s.arm]
        speedups = [s.categories[category].speedup for category in categories]
        aside = SPREAD * (index / max(len(others) - 1, 1) - 0.5)
        places = [row + aside for row in range(len(categories))]
        axes.plot(speedups, places, ls="", marker=marker, ms=7, color=colour, clip_on=False)
    axes.axvline(1, color=GREY, lw=1, ls="--", zorder=0)
    labels = [f"{name.replace('_', ' ')} ({part.prompts})" for name, part in categories.items()]
    axes.set_yticks(range(len(categories)), labels)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("speedup over plain decoding")
    axes.set_title("Speedup by category (prompts)", loc="left")
