"""The training program for draft heads, the console command ``specdec-train``: one command line, one head."""

from __future__ import annotations

import logging
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from experiments.run import CONF, INTERRUPTED, NO_FOLDER, message, warnings_on
from experiments.schedule import DECAYS

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "bf16", "fp32")
LEAST = {"seed": 0, "check_every": 1, "save_every": 1, "keep": 1, "check_prompts": 1, "check_replies": 1}
LEAST |= {"check_tokens": 2, "steps": 1, "batch": 1, "accumulate": 1}
LEAST |= {"replies": 1, "new_tokens": 2, "rows": 1, "longest": 1}


def main() -> None:
    """Train the head that the command line describes, and leave with an exit status.

    0: finished. 1: a wrong value, or a loss that is not finite. 130: Ctrl-C. Of several processes, as ``accelerate
    launch`` and torchrun start them, the first one writes.
    """
    if os.environ.get("RANK", "0") != "0":
        sys.argv += NO_FOLDER
    configured()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def configured(config: DictConfig) -> None:
    """The training under its configuration; raises SystemExit where its exit status is not 0."""
    console = Console(stderr=True)
    with warnings_on(console):
        status = guarded(config, console)
    if status:
        raise SystemExit(status)


def guarded(config: DictConfig, console: Console) -> int:
    """Train; a mistake of the user's is told in a line, its traceback goes to the log file."""
    found = HydraConfig.get()
    overrides, folder = list(found.overrides.task), Path(found.runtime.output_dir)
    try:
        check(config)
        # Here, so that --help and a mistyped name are answered at once: torch takes seconds to import.
        from experiments.train_session import run_training

        run_training(config, overrides, folder, console)
    except KeyboardInterrupt:
        words = [word for word in overrides if not word.startswith("resume=")]
        again = shlex.join(["specdec-train", *words, "resume=true", f"hydra.run.dir={folder}"])
        console.print(f"interrupted; to go on: {escape(again)}", highlight=False, soft_wrap=True)
        return INTERRUPTED
    except (InstantiationException, OmegaConfBaseException, OSError, ValueError) as error:
        log.debug("", exc_info=error)
        console.quiet = False
        console.print(f"[bold red]error:[/] {escape(message(error))}", highlight=False, soft_wrap=True)
        return 1
    return 0


def check(config: DictConfig) -> None:
    """Raises ValueError for values that are none, and for a head without its two parts."""
    open_values = sorted(key for key in OmegaConf.missing_keys(config) if not key.startswith("head.drafter."))
    if open_values:
        raise ValueError(f"{open_values[0]} must be set: pass {open_values[0]}=<value>")
    head = config.get("head")
    for part in ("module", "drafter"):
        node = head.get(part, {}) if isinstance(head, DictConfig) else {}
        drafts_nothing = part == "drafter" and node is None
        if not drafts_nothing and "_target_" not in (node or {}):
            raise ValueError(f"head.{part} has no _target_: pass head=<option>, see docs/training.md")
    for key, least in LEAST.items():
        value = config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key} must be a whole number of at least {least}, not {value!r}")
    if not OmegaConf.is_list(config.prompts):
        raise ValueError(f"prompts must be a list of files, such as prompts=[mine.jsonl], not {config.prompts!r}")
    if config.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {config.precision!r}")
    check_recipe(config)


def check_recipe(config: DictConfig) -> None:
    """Raises ValueError for what is no recipe."""
    for key, top in (("rate", math.inf), ("weight_decay", math.inf), ("warmup", 1.0), ("temperature", math.inf)):
        if not number(config[key]) or not 0 <= config[key] <= top or (key == "rate" and config[key] == 0):
            above = "above 0" if key == "rate" else f"from 0{'' if top == math.inf else f' to {top:g}'} on"
            raise ValueError(f"{key} must be a number {above}, not {config[key]!r}")
    if config.clip is not None and not (number(config.clip) and config.clip > 0):
        raise ValueError(f"clip must be a number above 0, or null for none, not {config.clip!r}")
    betas = config.betas
    if not OmegaConf.is_list(betas) or len(betas) != 2 or not all(number(b) and 0 <= b < 1 for b in betas):
        raise ValueError(f"betas must be two numbers from 0 to below 1, not {betas!r}")
    if config.decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, not {config.decay!r}")


def number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


if __name__ == "__main__":
    main()
