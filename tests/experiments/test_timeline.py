"""The picture of a few rounds: what is in it, where, and that it can be read on paper."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation, Text

from experiments import pipeline_study
from experiments.timeline import Event, main, read, rounds_of
from experiments.timeline_plot import LOOKS, ROWS, bars, save_timeline, without
from specdec import Trace, perfetto
from specdec.trace import Handover, Round, Span


def trace(rounds: int = 4) -> Trace:
    """Rounds of 20 ms; the prepared draft of every other one is taken, and saves the time to draft afresh."""
    made = Trace(rounds=[Round(0, 3, 3, 1, index % 3 + 1) for index in range(rounds)])
    for index in range(rounds):
        hit = index % 2 == 1
        parts = [
            ("host.verify", 0, 9, None),
            ("target", 0.5, 8, None),
            ("target.exit", 4, 4, index),
            ("drafter.look", 0, 3, index),
            ("link.early", 4, 5, index),
            ("drafter.branch", 5, 9, index),
            ("host.send", 9, 9.5, index),
            ("link.outcome", 9, 10, index),
            ("host.wait", 9.5, 18, index),
            ("drafter.settle", 10, 10.5, index),
            *([] if hit else [("drafter.draft", 10.5, 16, index)]),
            ("link.draft", 16, 18, index),
        ]
        made.spans += [
            Span(lane, 5 + index / 50 + start / 1e3, 5 + index / 50 + end / 1e3, r)
            for lane, start, end, r in parts
        ]
        made.handovers.append(Handover((hit,), 6))
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    perfetto.save(tmp_path / "trace.json", {"plain": Trace(), "mirror": trace()})
    return tmp_path / "trace.json"


def test_rounds_are_cut_out_and_counted_from_the_first(file: Path) -> None:
    events = rounds_of(read(file)["mirror"], "1:3")
    assert min(event.start for event in events) == 0
    assert max(event.end for event in events) == pytest.approx(40, abs=1e-3)
    targets = [(event.start, event.end) for event in events if event.lane == "target"]
    assert targets == [pytest.approx((0, 7.5), abs=1e-3), pytest.approx((20, 27.5), abs=1e-3)]
    assert [event.facts["round"] for event in events if event.lane == "target.exit"] == [1, 2]
    whole = rounds_of(read(file)["mirror"], "0:4")
    assert sum(event.lane == "link.early" for event in whole) == 4


def test_bars_are_where_the_spans_are(file: Path) -> None:
    found = [(row, round(start, 2), round(end, 2), look.label) for row, start, end, look in
             bars(rounds_of(read(file)["mirror"], "1:3"))]  # fmt: skip
    assert [bar for bar in found if bar[0] == "target"] == [
        ("target", 0, 3.5, "target up to its exit"),
        ("target", 3.5, 7.5, "target behind it"),
        ("target", 20, 23.5, "target up to its exit"),
        ("target", 23.5, 27.5, "target behind it"),
    ]
    branches = [bar[1:] for bar in found if bar[3].startswith("branches")]
    assert branches == [(4.5, 8.5, "branches, one adopted"), (24.5, 28.5, "branches, all wasted")]
    assert [bar[1:3] for bar in found if bar[3] == "drafts afresh"] == [(30, 35.5)]
    # The host's own part of a verification is what the target's forward leaves of it.
    assert ("host", 7.5, 8.5, "host accepts, commits, sends") in found


def test_without_an_exit_the_target_is_one_bar() -> None:
    found = list(bars([Event("target", 0, 4), Event("drafter", 4, 5), Event("host.propose", 4, 5)]))
    assert [(row, look.label) for row, *_, look in found] == [("target", "target"), ("drafter", "drafts afresh")]


def test_what_others_leave_of_an_interval() -> None:
    assert list(without((2, 9), [(0, 3), (4, 5), (8, 12), (20, 30)])) == [(3, 4), (5, 8)]
    assert list(without((2, 9), [])) == [(2, 9)] and list(without((2, 9), [(1, 10)])) == []


def seen(figure: Figure) -> list[Text]:
    """All texts of the picture."""
    axes: Axes = figure.axes[0]
    (legend,) = figure.legends
    (low, high), ticks = axes.get_xlim(), zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    labels = [label for at, label in ticks if low <= at <= high]
    free = [text for text in axes.texts if not isinstance(text, Annotation)]
    return [*free, *labels, *axes.get_yticklabels(), axes.xaxis.label, *legend.get_texts()]


@pytest.mark.parametrize("rounds", ["0:1", "1:3", "0:4"])
def test_it_fits_a_page_and_can_be_read(file: Path, tmp_path: Path, figures: list[Figure], rounds: str) -> None:
    main([str(file), "--out", str(tmp_path / "x.png"), "--rounds", rounds])
    assert imread(tmp_path / "x.png").shape[:2] == (720, 1890)
    (figure,) = figures
    assert tuple(figure.get_size_inches()) == (6.3, 2.4)
    texts = seen(figure)
    said = {text.get_text() for text in texts}
    assert {"host", "target", "messages", "drafter", "ms", "outcome"} <= said and said & {"+1", "+2", "+3"}
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    for text, (name, box) in zip(texts, boxes, strict=True):
        assert float(text.get_fontsize()) >= 7, name
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0, name
    for (one, first), (two, second) in combinations(boxes, 2):
        assert not first.overlaps(second), f"{one!r} over {two!r}"


def test_arrows_point_to_who_hears_the_message(tmp_path: Path, figures: list[Figure]) -> None:
    events = [Event("target", 0, 9), Event("drafter.draft", 0, 9)]
    save_timeline(tmp_path / "x.png", [*events, Event("link.early", 1, 2), Event("link.draft", 3, 5)])
    early, draft = (text for text in figures[0].axes[0].texts if isinstance(text, Annotation))
    assert (early.xyann[0], early.xy[0], draft.xyann[0], draft.xy[0]) == (1, 2, 3, 5)
    assert early.xyann[1] > early.xy[1] and draft.xyann[1] < draft.xy[1]


def grey(colour: str) -> float:
    """How light a colour is without its hue."""
    return sum(weight * part for weight, part in zip((0.299, 0.587, 0.114), to_rgb(colour), strict=True))


def test_looks_of_one_lane_differ_without_colour() -> None:
    lanes = {"target": LOOKS[1:3], "drafter": LOOKS[3:7], "host": LOOKS[7::2]}
    assert set(lanes) < set(ROWS) and sum(map(len, lanes.values())) == len(LOOKS) - 2
    for looks in lanes.values():
        for one, other in combinations(looks, 2):
            assert one.hatch != other.hatch or abs(grey(one.colour) - grey(other.colour)) > 0.2, (one, other)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rounds", "3"], "two numbers with a colon, such as 3:6, not '3'"),
        (["--rounds", "a:b"], "two numbers with a colon"),
        (["--rounds", "2:9"], "2:9 is not within the trace, which has rounds 0:4"),
        (["--rounds", "2:2"], "not within the trace"),
        (["--arm", "x"], "no arm 'x': choose --arm among plain, mirror"),
        (["--arm", "plain"], "rounds 0:0"),
    ],
)
def test_a_wrong_value_is_one_line(file: Path, arguments: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{told}"):
        main([str(file), *arguments])


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"traceEvents": [{"ph": "X"}]}', '{"traceEvents": [{"name": "a", "ph": "X"}]}']
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(SystemExit, match="is no trace of specdec: pass a file"):
        main([str(tmp_path / "other.json")])
    with pytest.raises(SystemExit, match="No such file"):
        main([str(tmp_path / "none.json")])


def test_the_study_saves_the_trace_of_a_mirror_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = "--target synthetic/tiny --drafter synthetic/tiny --dtype float32 --devices cpu cpu --repeats 1"
    sizes = "--prompt-tokens 16 --new-tokens 24 --lengths 2 --serial 2 --exits 1"
    pipeline_study.main([*small.split(), *sizes.split(), "--trace", "trace.json"])
    (events,) = read(Path("trace.json")).values()
    arms: list[dict[str, Any]] = json.loads(Path("pipeline.json").read_text())["arms"]
    assert [arm["schedule"] for arm in arms] == ["plain", "serial", "PEARL", "SSD", "Mirror E=1"]
    assert list(read(Path("trace.json"))) == ["Mirror E=1"]
    # A window has two tokens and three places: as many branches, the tokens of the window not among them.
    told = {arm["schedule"]: arm for arm in arms}
    for name, branches in {"PEARL": 1, "SSD": 3, "Mirror E=1": 3}.items():
        assert told[name]["branches"] <= branches * told[name]["handovers"], name
        hits = told[name]["hits"].values()
        assert sum(one["prepared"] for one in hits) == told[name]["branches"] - told[name]["wasted"]
        missed = sum(one["outcomes"] - one["prepared"] for one in hits)
        assert told[name]["fallback"] == missed / told[name]["handovers"]
    assert told["SSD"]["branches"] > 2 * told["PEARL"]["branches"]
    assert told["serial"]["hits"] == {} and "fallback" not in told["serial"]
    assert {"target", "target.exit", "drafter.branch", "link.early"} <= {event.lane for event in events}
    main(["trace.json", "--rounds", "1:3"])
    assert imread("timeline.png").shape[:2] == (720, 1890)
