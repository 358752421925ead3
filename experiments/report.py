"""What the user reads: one table of all arms, a small one by category, and the lines below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from experiments.ahead import Ahead
from experiments.arms import PLAIN, Decoding
from experiments.mismatches import BUG, Mismatch, describe
from experiments.summary import ArmSummary, Part
from specdec.runtime.synthetic import PREFIX

DEPTHS = 4
ROOMY = 96  # columns that the table takes with room between its own
NOTES = (
    "Speed: mean over prompts of new tokens / wall time, prefill included. Speedup: its ratio to plain's, "
    "with a 95 % interval from resampling the prompts.",
    "Tokens per round: committed per decoding round, pooled, correction or bonus token included, prefill "
    "excluded, nothing behind an end token; plain is 1.00.",
    "Accepted at depth: share of the drafts' tokens there, given that the earlier ones were accepted.",
    "Time: T forwards of the target, D the drafter at work while it is not (forwards of its model, if any), host "
    "the rest.",
)
AHEAD_NOTE = (
    "Drafting ahead: exposed, the drafter at work while the target is not; rendezvous, neither is; hidden, the "
    "drafter's work beside the target's; fallback, rounds in which a row had no draft ready. Prefill excluded."
)
VIRTUAL = "virtual time: speeds are computed from channel.costs, whatever machine this is"
SYNTHETIC = "synthetic weights: speeds are real, texts mean nothing"
SYNTHETIC_TEXTS = "synthetic weights: texts mean nothing"
SAMPLED = "Equal, n/a: sampled replies need not be plain's (acceptance=match and coupled keep its tokens)."


@dataclass(frozen=True)
class Report:
    """Everything that is said at the end of a run.

    Attributes:
        title: what was run.
        decoding: how.
        summaries: of every arm, plain decoding first; empty if no prompt was finished.
        prompts: finished and all.
        mismatches: replies that should be plain decoding's and are not.
        failed: why prompts have failed, by id.
        remarks: what holds for all figures.
    """

    title: str
    decoding: Decoding
    summaries: Sequence[ArmSummary]
    prompts: tuple[int, int]
    mismatches: Sequence[Mismatch] = ()
    failed: dict[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def status(self) -> int:
        """1 if no prompt was finished or tokens differ as only a bug explains, else 0."""
        return int(not self.summaries or self.has_bug)

    @property
    def has_bug(self) -> bool:
        """Whether rounding cannot explain some difference."""
        return any(mismatch.kind == BUG for mismatch in self.mismatches)

    def show(self, console: Console) -> None:
        """Print it."""
        if self.summaries:
            console.print(Text(self.title, "bold" if self.decoding.acceptance.lossless else "bold red"))
            console.print(Group(Text(), arms_table(self.summaries, console.width < ROOMY), Text()))
            if len(self.summaries[0].categories) > 1:
                console.print(Group(categories_table(self.summaries), Text()))
            if any(summary.ahead for summary in self.summaries):
                console.print(Group(ahead_table(self.summaries), Text()))
            for note in self.notes():
                console.print(Text(note, style="dim"))
        for line in self.lines():
            console.print(line)

    def notes(self) -> tuple[str, ...]:
        """What the tables' words mean."""
        ahead = (AHEAD_NOTE,) if any(summary.ahead for summary in self.summaries) else ()
        return (*NOTES, *ahead, *(() if self.decoding.reproducible else (SAMPLED,)))

    def lines(self) -> list[Text]:
        """What a reader must not miss."""
        done, wanted = self.prompts
        lines = [Text(remark, "yellow") for remark in self.remarks]
        lines += [Text(f"{done} of {wanted} prompts finished", "yellow")] if done < wanted else []
        lines += [Text(f"failed: {name}: {reason}", "red") for name, reason in self.failed.items()]
        compared = sum(s.identical[1] for s in self.summaries if s.identical and s.arm != PLAIN)
        if compared:
            lines.append(Text(describe(self.mismatches, compared), "bold red" if self.has_bug else ""))
        for summary in self.summaries:
            for fault, count in summary.faults.items():
                lines.append(Text(f"{summary.arm} was at fault {count} times: {fault}", "yellow"))
        return lines


def statement(target: str, dtype: str, device: str, decoding: Decoding) -> str:
    """One line: what runs where, and what the acceptance rule promises."""
    return " · ".join((target, dtype, device, law(decoding), rule(decoding)))


def remarks(target: str, virtual: bool = False) -> tuple[str, ...]:
    """What a reader must know of the figures: by the target's name, and whether times are computed."""
    synthetic = target.startswith(PREFIX)
    weights = SYNTHETIC_TEXTS if virtual else SYNTHETIC
    return ((weights,) if synthetic else ()) + ((VIRTUAL,) if virtual else ())


def law(decoding: Decoding) -> str:
    """How tokens are chosen, in a few words."""
    sampling = decoding.sampling
    words = ["greedy" if sampling.greedy else f"temperature {sampling.temperature:g}"]
    if not sampling.greedy:
        words += [f"top-k {sampling.top_k}"] if sampling.top_k else []
        words += [f"top-p {sampling.top_p:g}"] if sampling.top_p < 1 else []
        words += [f"min-p {sampling.min_p:g}"] if sampling.min_p else []
    words += [f"repetition penalty {sampling.repetition_penalty:g}"] if sampling.penalises else []
    return ", ".join(words)


def rule(decoding: Decoding) -> str:
    """The acceptance rule and whether it keeps the target's law."""
    name = type(decoding.acceptance).__name__.lower()
    if decoding.acceptance.lossless:
        return f"acceptance {name} (lossless)"
    return f"acceptance {name} (LOSSY: the output does not follow the target's law)"


def arms_table(summaries: Sequence[ArmSummary], tight: bool = False) -> Table:
    """One row per arm; ``tight`` fits a terminal of 80 columns."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if tight else 1))
    table.add_column("arm", overflow="fold", min_width=min(11, max(len(s.arm) for s in summaries)))
    heads = ("tokens\n/s", "speedup\n(95 %)", "tokens\n/round", f"accepted at\ndepth 1–{DEPTHS}, %")
    for head in (*heads, "equal to\nplain", "time, %\nT/D/host"):
        table.add_column(head, justify="right", no_wrap=True)
    for s in summaries:
        table.add_row(
            s.arm,
            f"{s.tokens_per_second:.1f}",
            speed_cell(s),
            number(s.accepted.tokens_per_round),
            by_depth(s),
            identical_cell(s),
            "/".join(f"{100 * s.shares[lane]:.0f}" for lane in ("target", "drafter", "host")),
        )
    return table


def speed_cell(summary: ArmSummary) -> Text:
    """Speedup with its interval; an arm that is not faster is told so."""
    if summary.arm == PLAIN:
        return Text("1.00×")
    cell, interval = Text(f"{summary.speedup:.2f}×"), summary.speedup_interval
    if interval is not None:
        cell.append(f" ({interval[0]:.2f}–{interval[1]:.2f})")
    low, high = interval or (summary.speedup, summary.speedup)
    if high < 1:
        cell.append("\nslower than plain", "yellow")
    elif low <= 1:
        cell.append("\nno clear gain", "yellow")
    return cell


def identical_cell(summary: ArmSummary) -> str:
    """How many replies are plain decoding's, where that is promised."""
    if summary.arm == PLAIN or summary.identical is None:
        return "–" if summary.arm == PLAIN else "n/a"
    return f"{summary.identical[0]} of {summary.identical[1]}"


def by_depth(summary: ArmSummary) -> str:
    """Acceptance at the first depths, in percent."""
    shares = [depth.share for depth in summary.positions[:DEPTHS]]
    return " ".join(map(percent, shares)) or "–"


def categories_table(summaries: Sequence[ArmSummary]) -> Table:
    """Speedup of every arm by category, and its tokens per round."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("speedup by category (prompts), tokens/round", no_wrap=True)
    others = [summary for summary in summaries if summary.arm != PLAIN]
    for summary in others:
        table.add_column(summary.arm, justify="right")
    for category, part in summaries[0].categories.items():
        cells = [category_cell(summary.categories[category]) for summary in others]
        table.add_row(f"{category} ({part.prompts})", *cells)
    return table


def category_cell(part: Part) -> str:
    """Speedup, and tokens per round where there were rounds."""
    rounds = "" if part.tokens_per_round is None else f" {part.tokens_per_round:5.2f}"
    return f"{part.speedup:.2f}×{rounds}"


def ahead_table(summaries: Sequence[ArmSummary]) -> Table:
    """What drafting ahead came to, a column for every arm that does it."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("drafting ahead", no_wrap=True)
    columns = [(summary.arm, ahead_cells(summary.ahead)) for summary in summaries if summary.ahead]
    for arm, _ in columns:
        table.add_column(arm, justify="right", overflow="fold")
    for line in columns[0][1]:
        table.add_row(line, *(cells[line] for _, cells in columns))
    return table


def ahead_cells(ahead: Ahead) -> dict[str, str]:
    """The lines of one arm."""
    return {
        "hit rate, %": percent(ahead.hit_rate),
        "  at accepted length 0, 1, …": " ".join(map(percent, ahead.rates())) or "–",
        "named early at position 0, 1, …, %": " ".join(map(percent, ahead.omega.values())) or "–",
        "hidden share, %": percent(ahead.hidden),
        "exposed, ms/round": number(ahead.exposed_ms),
        "target idle, ms/round": number(ahead.target_idle_ms),
        "drafter idle, ms/round": number(ahead.drafter_idle_ms),
        "rendezvous, ms/round": number(ahead.rendezvous_ms),
        "branches prepared/round": number(ahead.branches),
        "branches wasted/round": number(ahead.wasted),
        "fallback, % of rounds": percent(ahead.fallback),
    }


def percent(value: float | None) -> str:
    """A share without decimals."""
    return "–" if value is None else f"{100 * value:.0f}"


def number(value: float | None) -> str:
    """Two decimals."""
    return "–" if value is None else f"{value:.2f}"
