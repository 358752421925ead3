"""What may become of either process: tokens stay what they are, errors reach the caller, and nobody lingers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

import specdec
from drafters import ModelDrafter, NgramDrafter, NullDrafter
from specdec.channel import Process
from specdec.forecast import DraftTopK
from verifiers import FullVerifier

ROOT = Path(__file__).resolve().parents[2]
LONG = 60.0  # seconds that nothing here takes


class Failing(FullVerifier):
    """Its third forward fails."""

    left = 3

    def score(self, *arguments, **options):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("the target failed")
        return super().score(*arguments, **options)


class Hung(NgramDrafter):
    """It says so, and then never comes back."""

    def draft(self, context, noise):
        Path(os.environ["HUNG"]).touch()
        while True:
            time.sleep(0.01)


class Unmade(Hung):
    """It does not even begin."""

    def __init__(self):
        self.draft(None, None)


def wait_for(condition, seconds=1.0):
    """Until it holds, but no longer than so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_drafter_that_is_paused_is_not_waited_for_and_catches_up(tiny_target):
    channel, verifier = Process(patience=1.0), FullVerifier(tiny_target)
    expected = specdec.generate(verifier, NullDrafter(), [1, 2], 120)
    seen, ahead_again = [], []

    def stream(_, tokens):
        ends = channel._link._ends
        seen.append(tokens)
        if len(seen) == 5:
            os.kill(ends.child.pid, signal.SIGSTOP)
        if len(seen) == 15:
            time.sleep(2.0)
            os.kill(ends.child.pid, signal.SIGCONT)
        elif len(seen) > 15 and len(tokens) > 1:  # a draft was accepted
            ahead_again.append(len(seen))
        if len(seen) >= 15 and not ahead_again:  # so that the tokens do not run out before the drafter is back
            wait_for(lambda: not ends.pair._heard.empty())

    drafter = ModelDrafter(tiny_target, length=2)
    result = specdec.generate(
        verifier, drafter, [1, 2], 120, forecast=DraftTopK(1), channel=channel, stream=stream
    )
    channel.close()
    assert torch.equal(result.tokens, expected.tokens)
    assert result.metrics.faults["drafter: no draft in time"] >= 9
    assert not any("is gone" in fault for fault in result.metrics.faults)
    assert ahead_again, "it did not catch up"


def test_an_error_of_the_target_reaches_the_caller_from_where_it_was_raised(tiny_target):
    channel = Process(patience=LONG)
    with pytest.raises(RuntimeError, match="the target failed") as caught:
        specdec.generate(Failing(tiny_target), NgramDrafter(), [1, 2], forecast=DraftTopK(1), channel=channel)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "score"
    child = channel._link._ends.child
    assert child.poll() is None, "it stays for the next generation"
    channel.close()
    assert child.poll() is not None


SCRIPT = """
import os, signal, sys
import specdec
from drafters import NgramDrafter
from families import FAMILIES
from specdec.channel import Process
from specdec.forecast import DraftTopK
from test_process_faults import Failing
from verifiers import FullVerifier

fault, channel = sys.argv[1], Process(patience=60)

def stream(_, tokens):
    if fault != "error":
        os.kill(os.getpid(), getattr(signal, fault))

made = (Failing if fault == "error" else FullVerifier)(FAMILIES["llama"]())
specdec.generate(made, NgramDrafter(), [1, 2], 200, forecast=DraftTopK(1), channel=channel, stream=stream)
"""


HUNG = """
import os, signal, sys, threading
from functools import partial
from pathlib import Path
import specdec
from families import FAMILIES
from specdec.channel import Process
from specdec.forecast import DraftTopK
from test_process_faults import Hung, Unmade, wait_for
from verifiers import FullVerifier

def kill():
    wait_for(Path(os.environ["HUNG"]).exists, 60)
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))

threading.Thread(target=kill).start()
drafter = Hung() if sys.argv[2] == "Hung" else partial(Unmade)
channel = Process(patience=60)
specdec.generate(FullVerifier(FAMILIES["llama"]()), drafter, [1, 2], 200, forecast=DraftTopK(1), channel=channel)
"""


# Nobody handles SIGTERM: a process that dies of it leaves as it does of SIGKILL.
@pytest.mark.parametrize(("fault", "drafter"), [("SIGKILL", "Hung"), ("SIGTERM", "Unmade")])
def test_a_drafter_that_hangs_does_not_outlive_its_target(tmp_path, fault, drafter):
    done = script(HUNG, fault, drafter, HUNG=str(tmp_path / "hung"))
    assert done.returncode == -getattr(signal, fault), done.stderr
    assert (tmp_path / "hung").exists(), "it was killed too early to show anything"


def script(text, *arguments, **environment):
    """Run a script. A drafter's process has the same pipes: they are not at their end before it has left."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/pipeline")))
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=LONG,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize(
    ("fault", "status", "told"),
    [
        ("error", 1, "RuntimeError: the target failed"),
        ("SIGINT", -signal.SIGINT, "KeyboardInterrupt"),
        ("SIGKILL", -signal.SIGKILL, ""),
    ],
)
def test_however_the_targets_process_ends_the_drafters_does_too(fault, status, told):
    done = script(SCRIPT, fault)
    assert done.returncode == status, done.stderr
    assert told in done.stderr and ("in score" in done.stderr) == (fault == "error")
    assert "terminate" not in done.stderr and done.stderr.count("Traceback") == (fault != "SIGKILL")
