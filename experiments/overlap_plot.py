"""What an early exit knows, as two pictures: the mass it covers, and the outcomes that forecasts prepare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.plot import COLOURS, GREY

# Dark where few tokens count, light where many do, told apart in grey too.
SHADES = [to_hex((0.05 + 0.13 * i, 0.10 + 0.12 * i, 0.35 + 0.10 * i)) for i in range(6)]
CURVES = {"mass": "final law's mass", "argmax_found": "final law's likeliest token"}
FEW = 12  # depths: with more of them a line needs no marks

Numbers = dict[str, Any]


def save_curves(path: Path, curves: Sequence[Numbers], title: str) -> None:
    """Draw the curves of ``experiments.overlap_mass`` into a PNG file: a line per kappa over the depth."""
    figure, panels = blank(len(CURVES), title)
    for axes, (what, label) in zip(panels, CURVES.items(), strict=True):
        for trained in (False, True):
            draw_curves(axes, [curve for curve in curves if curve["trained"] == trained], what, trained)
        axes.set_xlabel("exit depth E / N")
        axes.set_ylabel(f"{label} in the exit's top $\\kappa$")
        axes.set_xlim(0, 1)
    kappas = curves[0]["mass"]
    marks = [Line2D([], [], color=c, label=rf"$\kappa$ = {k}") for c, k in zip(SHADES, kappas, strict=True)]
    marks.append(Line2D([], [], color=GREY, ls="--", label="raw exit"))
    if any(curve["trained"] for curve in curves):
        marks.append(Line2D([], [], color=GREY, marker="o", ms=4, label="trained exit"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=8)
    figure.savefig(path)


def draw_curves(axes: Axes, curves: Sequence[Numbers], what: str, trained: bool) -> None:
    """Raw exits dashed, trained ones solid."""
    curves = sorted(curves, key=lambda curve: curve["layer"])
    places = [curve["share_of_depth"] for curve in curves]
    marker = "o" if trained else "." if len(curves) < FEW else ""
    for shade, kappa in zip(SHADES, curves[0][what] if curves else (), strict=False):
        heights = [curve[what][kappa] for curve in curves]
        axes.plot(places, heights, color=shade, ls="-" if trained else "--", marker=marker, ms=4, lw=1.4)


def save_hits(path: Path, drafters: Sequence[Numbers], title: str) -> None:
    """Draw hit rates given a rejection over the number of branches into a PNG file: a panel per drafter."""
    figure, panels = blank(len(drafters), title)
    names = list(dict.fromkeys(arm["forecast"] for arm in drafters[0]["arms"]))
    for axes, drafter in zip(panels, drafters, strict=True):
        draw_hits(axes, drafter, names)
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path)


def draw_hits(axes: Axes, drafter: Numbers, names: Sequence[str]) -> None:
    """A colour per source; raw exits dashed, blends with squares."""
    sources = list(dict.fromkeys(source_of(name) for name in names))
    for name in names:
        some = [arm for arm in drafter["arms"] if arm["forecast"] == name]
        colour, raw = COLOURS[sources.index(source_of(name)) % len(COLOURS)], " raw" in name
        places, heights = [arm["branches"] for arm in some], [arm["hit_given_rejection"] or 0.0 for arm in some]
        marker, style, face = "s" if "+" in name else "o", "--" if raw else "-", "white" if raw else colour
        axes.plot(places, heights, color=colour, ls=style, marker=marker, mfc=face, ms=4.5, lw=1.3, label=name)
    axes.set_xscale("log", base=2)
    budgets = sorted({arm["branches"] for arm in drafter["arms"]})
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xlabel("branches per round")
    axes.set_ylabel("outcome prepared, given a rejection")
    axes.set_title(
        f"first {drafter['drafter_layer']} layers draft {drafter['length']} tokens\n"
        f"({drafter['mean_accepted']:.1f} accepted, {drafter['rejections']} rejections)",
        fontsize=9,
    )


def source_of(name: str) -> str:
    """The exit, or the drafter, that a forecast listens to."""
    return name.removesuffix(" + drafter").removesuffix(" raw").removesuffix(" trained")


def blank(panels: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    """A figure with axes from 0 to 1, side by side."""
    figure = Figure(figsize=(4.2 * panels, 3.9), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    axes: Sequence[Axes] = figure.subplots(1, panels, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set_ylim(0, 1.02)
    return figure, axes
