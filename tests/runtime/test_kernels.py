"""Our kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = [Path(__file__).with_name(name) for name in ("interpreted_kernels.py", "interpreted_rounds.py")]


def test_kernels_compute_what_their_references_do():
    # The interpreter has to be chosen before Triton is imported, which other tests may have done: hence a process.
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *map(str, TESTS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS[0].parents[2])
    assert done.returncode == 0, done.stdout[-4000:]
