"""What a result depends on besides the configuration."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import specdec
from verifiers import FullVerifier

PROJECT = Path(__file__).resolve().parents[1]
PROCESSORS = Path("/proc/stat")


def provenance(overrides: Sequence[str], verifier: FullVerifier) -> dict[str, Any]:
    """Command, code, versions and machine, ready for JSON."""
    return {
        "command": command(overrides),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": revision(PROJECT),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "specdec": specdec.__version__,
            "cuda": torch.version.cuda,
        },
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": load_average(),
        "device": device_name(verifier.device),
        "dtype": dtype_name(verifier),
    }


def command(overrides: Sequence[str]) -> str:
    """What to type to run the same again."""
    return shlex.join(["specdec", *overrides])


def revision(directory: Path) -> dict[str, Any] | None:
    """Git revision of a directory and whether files differ from it; None where it is not a repository's root.

    An installed package may lie in someone else's repository, whose revision would say nothing.
    """
    root = _git(directory, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != directory.resolve():
        return None
    changed = _git(directory, "status", "--porcelain")
    return {"revision": _git(directory, "rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def load_average() -> float | None:
    """Processes that wanted to run during the last minute, None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy(seconds: float = 0.5) -> bool:
    """Whether others take more than a quarter of the processors' time, so that timings mean little.

    It waits meanwhile. Where the system does not say, the answer is no.
    """
    before = processor_time()
    time.sleep(seconds)
    idle, whole = (now - then for now, then in zip(processor_time(), before, strict=True))
    return whole > 0 and idle / whole < 0.75


def processor_time() -> tuple[int, int]:
    """Idle and total time of all processors since the system started, in ticks; zeros where it does not say."""
    try:
        ticks = [int(field) for field in PROCESSORS.read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return ticks[3] + ticks[4], sum(ticks)


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device_name(device: torch.device) -> str:
    """The accelerator's name, or the processor's and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_model()}, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else str(device)


def dtype_name(verifier: FullVerifier) -> str:
    """Type of the target's weights, such as bfloat16."""
    return str(verifier.model.network.dtype).removeprefix("torch.")
