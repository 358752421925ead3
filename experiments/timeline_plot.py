"""Rounds on their lanes: host, target, messages between, drafter. For a column of a page, in print too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.plot import GREY
from experiments.timeline import Event
from specdec.overlap import Interval, union

SIZE = (6.3, 2.4)  # inches
FONT = 7.5  # points
BAR = 0.62
INK = "#222222"


@dataclass(frozen=True)
class Look:
    """How something is drawn: those of one lane differ in grey, or in their hatching."""

    label: str
    colour: str
    hatch: str = ""


PLAIN = Look("target", "#0072B2")
BEFORE, BEHIND = Look("target up to its exit", "#0072B2"), Look("target behind it", "#8CCBF2")
LOOK = Look("drafter reads the window", "#F0E442")
ADOPTED, WASTED = Look("branches, one adopted", "#2DBE94"), Look("branches, all wasted", "#FFFFFF", "////")
DRAFT = Look("drafts afresh", "#6B2F00")
COMMIT = Look("host accepts, commits, sends", "#555555")
LAUNCH, WAIT = Look("host launches", "#555555"), Look("waits", "#E4E4E4")
LOOKS = (PLAIN, BEFORE, BEHIND, LOOK, ADOPTED, WASTED, DRAFT, COMMIT, LAUNCH, WAIT)
LINES = {
    "link.early": ("early exit's tokens", ":"),
    "link.outcome": ("outcome", "--"),
    "link.draft": ("draft", "-"),
}

ROWS = ("host", "target", "link", "drafter")  # from above
Bar = tuple[str, float, float, Look]  # row, start, end
Heights = dict[str, float]  # of the rows that are there


def save_timeline(path: Path, events: Sequence[Event]) -> None:
    """Draw events (milliseconds from 0) into a PNG file."""
    with matplotlib.rc_context({"font.size": FONT, "hatch.linewidth": 0.6, "axes.linewidth": 0.6}):
        rows = [row for row in ROWS if any(event.lane.startswith(row) for event in events)]
        heights = {row: -float(index) for index, row in enumerate(rows)}
        figure = Figure(figsize=SIZE, dpi=300, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        looks = draw_bars(axes, list(bars(events)), heights)
        lanes = draw_messages(axes, [event for event in events if event.lane in LINES], heights)
        draw_commits(axes, [event for event in events if event.lane == "target"], heights)
        frame(axes, heights, events)
        patches = [Patch(fc=look.colour, ec=INK, lw=0.5, hatch=look.hatch, label=look.label) for look in looks]
        lines = [Line2D([], [], color=INK, ls=LINES[lane][1], lw=1, label=LINES[lane][0]) for lane in lanes]
        figure.legend(
            handles=[*patches, *lines],
            loc="outside lower center",
            ncols=4,
            frameon=False,
            handlelength=1.7,
            columnspacing=1.2,
            labelspacing=0.35,
        )
        figure.savefig(path)


def bars(events: Sequence[Event]) -> Iterator[Bar]:
    """What is drawn as a bar."""
    targets = union((event.start, event.end) for event in events if event.lane == "target")
    exits = [event.start for event in events if event.lane == "target.exit"]
    for event in events:
        if event.lane == "target":
            yield from halves(event, exits)
        elif event.lane == "host.verify":  # the host's own part of it
            yield from (("host", start, end, COMMIT) for start, end in without((event.start, event.end), targets))
        else:
            look = look_of(event)
            if look is not None:
                yield event.lane.partition(".")[0], event.start, event.end, look


def halves(target: Event, exits: Sequence[float]) -> Iterator[Bar]:
    """A verification, parted where its early exit has spoken."""
    spoken = next((at for at in exits if target.start <= at <= target.end), None)
    if spoken is None:
        yield "target", target.start, target.end, PLAIN
    else:
        yield "target", target.start, spoken, BEFORE
        yield "target", spoken, target.end, BEHIND


def look_of(event: Event) -> Look | None:
    """How a span is drawn, None for one that is not."""
    if event.lane == "drafter.branch":
        return ADOPTED if any(event.facts.get("hit", ())) else WASTED
    looks = {
        "drafter": DRAFT,
        "drafter.draft": DRAFT,
        "drafter.look": LOOK,
        "host.send": COMMIT,
        "host.launch": LAUNCH,
        "host.wait": WAIT,
    }
    return looks.get(event.lane)


def without(whole: Interval, others: Sequence[Interval]) -> Iterator[Interval]:
    """The parts of an interval that none of the others covers; those are in order and apart."""
    start, end = whole
    for low, high in others:
        if start < low < end:
            yield start, low
        if low < end:
            start = max(start, high)
    if start < end:
        yield start, end


def draw_bars(axes: Axes, found: Sequence[Bar], heights: Heights) -> list[Look]:
    """Draw them; the looks that were used."""
    for row, start, end, look in found:
        axes.barh(
            heights[row], end - start, left=start, height=BAR, color=look.colour, hatch=look.hatch, ec=INK, lw=0.5
        )
    used = {look for *_, look in found}
    return [look for look in LOOKS if look in used]


def draw_messages(axes: Axes, messages: Sequence[Event], heights: Heights) -> list[str]:
    """An arrow from where a message left to where it arrived; the lanes that were used."""
    for message in messages:
        above, below = heights["target"] - BAR / 2, heights["drafter"] + BAR / 2
        ends = (below, above) if message.lane == "link.draft" else (above, below)
        arrow = {
            "arrowstyle": "->",
            "ls": LINES[message.lane][1],
            "lw": 0.9,
            "color": INK,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", (message.end, ends[1]), (message.start, ends[0]), arrowprops=arrow)
    used = {message.lane for message in messages}
    return [lane for lane in LINES if lane in used]


def draw_commits(axes: Axes, targets: Sequence[Event], heights: Heights) -> None:
    """Above every verification the tokens that its rows grew by."""
    for target in targets:
        counts = target.facts.get("committed", ())
        if counts:
            middle = (target.start + target.end) / 2
            label = " ".join(f"+{count}" for count in counts)
            axes.text(middle, heights["target"] + BAR / 2 + 0.02, label, ha="center", va="bottom", color=INK)


def frame(axes: Axes, heights: Heights, events: Sequence[Event]) -> None:
    """Names of the lanes, and the scale."""
    names = ["messages" if row == "link" else row for row in heights]
    axes.set_yticks(list(heights.values()), names)
    axes.set_ylim(min(heights.values()) - 0.5, max(heights.values()) + 0.5)
    axes.set_xlim(0, max(event.end for event in events))
    axes.set_xlabel("ms", labelpad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GREY, alpha=0.25, lw=0.5)
    axes.set_axisbelow(True)
