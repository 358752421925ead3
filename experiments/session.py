"""One run, from its configuration to its report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from experiments import mismatches
from experiments.build import Meet, build, check
from experiments.folder import Folder, resolved
from experiments.job import Job, failed, finished, prompt_ids, run
from experiments.journal import Entry, Journal
from experiments.plot import save_plot
from experiments.progress import bar, say
from experiments.provenance import busy, device_name, dtype_name, provenance
from experiments.report import Report, remarks, statement
from experiments.summary import DEFINITIONS, summarise
from experiments.warm_up import warm_up
from specdec import Trace
from specdec.triage import Triage

log = logging.getLogger(__name__)

PIPED_WIDTH = 120


def run_session(
    config: DictConfig,
    drafter: str | None,
    overrides: Sequence[str],
    path: Path,
    console: Console,
    meet: Meet | None = None,
) -> int:
    """Build, decode, report.

    Args:
        config: see conf/config.yaml.
        drafter: the chosen option of the group ``drafter``.
        overrides: of the command line.
        path: the results folder; one that holds results of the same configuration goes on.
        console: for progress; the report goes to standard output.
        meet: see ``build``.

    Returns:
        the exit status: 0; 1 if no prompt was finished or tokens differ as only a bug explains.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once what is finished was reported.
        ValueError, OSError, hydra.errors.InstantiationException: the configuration is wrong.
    """
    check(config)
    folder = Folder(path)
    folder.open(config)
    logger, journal = instantiate(config.logger), Journal(folder.results)
    job = build(config, drafter, meet)
    folder.write_provenance(provenance(overrides, job.verifier) | {"clock": "virtual" if job.virtual else "wall"})
    title = headline(config.target, job)
    say(console, f"{title} · prompts: {len(job.prompts)} · arms: {len(job.arms)}")
    traces: dict[str, Trace] = {}
    interrupted = decode(job, journal, traces, config.warmup, console)
    folder.write_traces(traces)
    with console.status("comparing replies"):  # a difference is replayed in higher precision
        report = replace(report_on(job, journal, title), remarks=remarks(config.target, job.virtual))
    folder.write_summary(as_json(report))
    if report.summaries:
        save_plot(folder.plot, title, report.summaries)
        logger.log(resolved(config), report.summaries, path)
    report.show(Console(width=None if sys.stdout.isatty() else PIPED_WIDTH))
    say(console, f"results in {path}")
    if interrupted:
        raise KeyboardInterrupt
    return report.status


def headline(target: str, job: Job) -> str:
    """What runs where, in one line."""
    device = "virtual time" if job.virtual else device_name(job.verifier.device)
    return statement(target, dtype_name(job.verifier), device, job.decoding)


def decode(job: Job, journal: Journal, traces: dict[str, Trace], warmup: int, console: Console) -> bool:
    """Run all that is not done yet; whether Ctrl-C ended it."""
    keys = [(prompt.id, turn, arm.name) for prompt in job.prompts for turn, arm in job.steps(prompt)]
    if all(key in journal for key in keys):
        return False
    if not job.virtual and busy():
        log.warning("other programs keep this machine busy: timings will be noisy")
    try:
        warm_up(job, warmup)
        with bar(console, "decoding", len(keys)) as progress:
            run(job, journal, progress, traces)
    except KeyboardInterrupt:
        return True
    return False


def report_on(job: Job, journal: Journal, title: str) -> Report:
    """Aggregate what is finished, and find out why tokens differ."""
    repeats = {arm.name: arm.repeats_plain(job.decoding) for arm in job.arms}
    entries = list(finished(job, journal))
    pairs = mismatches.find(entries, [name for name, same in repeats.items() if same])
    prompts = {prompt.id: prompt for prompt in job.prompts}

    def prompt_of(entry: Entry) -> list[int]:
        return prompt_ids(job, prompts[entry.id], entry.turn, journal)

    return Report(
        title=title,
        decoding=job.decoding,
        summaries=summarise(entries, repeats) if entries else (),
        prompts=(len({entry.id for entry in entries}), len(job.prompts)),
        mismatches=mismatches.explain(
            pairs, prompt_of, triage_of(job), [arm.name for arm in job.arms if arm.exact]
        ),
        failed=failed(job, journal),
    )


def triage_of(job: Job) -> mismatches.Triager | None:
    """Triage compares raw logits: it can judge greedy decoding under a lossless rule, without penalties."""
    sampling = job.decoding.sampling
    judges = sampling.greedy and not sampling.penalises and job.decoding.acceptance.lossless
    return Triage(job.verifier.model) if judges else None


def as_json(report: Report) -> dict[str, Any]:
    """The content of summary.json."""
    done, wanted = report.prompts
    return {
        "title": report.title,
        "remarks": list(report.remarks),
        "lossless": report.decoding.acceptance.lossless,
        "prompts": {"finished": done, "all": wanted, "failed": report.failed},
        "arms": {summary.arm: summary.as_dict() for summary in report.summaries},
        "mismatches": [asdict(mismatch) for mismatch in report.mismatches],
        "definitions": DEFINITIONS,
    }
