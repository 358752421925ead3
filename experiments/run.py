"""The main job, the console command ``specdec``: one command line, one run."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

CONF = Path(__file__).resolve().parents[1] / "conf"
INTERRUPTED = 130
LAUNCHED = "TORCHELASTIC_RUN_ID"  # torchrun has started this process
NO_FOLDER = ("hydra.run.dir=.", "hydra.job_logging.root.handlers=[]", "~hydra.job_logging.handlers.file")

log = logging.getLogger(__name__)


def main() -> None:
    """Run the job that the command line describes, and leave with its exit status.

    0: finished. 1: a wrong value, no prompt finished, or tokens that only a bug explains. 130: Ctrl-C.
    Of the two processes that torchrun starts, one runs the job and the other serves its drafters.
    """
    if LAUNCHED in os.environ and os.environ["RANK"] != "0":
        sys.argv += NO_FOLDER  # results are the other's
    try:
        configured()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def configured(config: DictConfig) -> None:
    """The job under its configuration; raises SystemExit where its exit status is not 0."""
    console = Console(stderr=True)
    with warnings_on(console):
        status = guarded(config, console)
    if status:
        raise SystemExit(status)


def guarded(config: DictConfig, console: Console) -> int:
    """Run the job; a mistake of the user's is told in a line, its traceback goes to the log file."""
    hydra_config = HydraConfig.get()
    overrides, folder = list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir)
    try:
        # Here, so that --help and a mistyped name are answered at once: torch takes seconds to import.
        from experiments.session import run_session

        drafter = hydra_config.runtime.choices.get("drafter")
        if LAUNCHED not in os.environ:
            return run_session(config, drafter, overrides, folder, console)
        from experiments.ranks import Ranks

        with Ranks.joined(os.environ) as ranks:
            if ranks.drafting:
                return ranks.serve(config, drafter)
            ranks.check(config)
            return run_session(config, drafter, overrides, folder, console, ranks.meet)
    except KeyboardInterrupt:
        again = shlex.join(["specdec", *overrides, f"hydra.run.dir={folder}"])
        console.print(f"interrupted; to go on: {escape(again)}", highlight=False, soft_wrap=True)
        return INTERRUPTED
    except (InstantiationException, OmegaConfBaseException, OSError, ValueError) as error:
        log.debug("", exc_info=error)
        console.print(f"[bold red]error:[/] {escape(message(error))}", highlight=False, soft_wrap=True)
        return 1


def message(error: Exception) -> str:
    """What went wrong, without the chain of calls."""
    cause = error.__cause__
    if isinstance(error, InstantiationException) and cause is not None:
        where = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
        return f"{where}: {cause}" if where else str(cause)
    return str(error)


@contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Show the program's warnings on a console; Hydra's logging writes them, and the rest, to a file."""
    handler = RichHandler(logging.WARNING, console, show_time=False, show_path=False)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


if __name__ == "__main__":
    main()
