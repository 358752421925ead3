"""The main job on models without weights, from its command line to what it says about them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments import data
from experiments.report import SYNTHETIC, VIRTUAL, remarks
from experiments.run import CONF
from specdec.runtime.synthetic import SHAPES, Synthetic, successors

V = SHAPES["synthetic/tiny"].vocab_size


@pytest.fixture
def pair(command: Any) -> Any:
    """A run of the pair; more overrides may follow."""

    def run(*overrides: str, folder: str = "run") -> Any:
        base = ["target=synthetic/tiny", "drafter=synthetic/tiny", f"data.path={command.prompts}"]
        return command(*base, *overrides, folder=folder)

    return run


def test_every_artefact_says_synthetic(pair: Any) -> None:
    done = pair("drafter.agreement=0.5")
    assert done.status == 0, done.said
    assert done.summary["title"].startswith("synthetic/tiny · float32")
    assert done.summary["remarks"] == [SYNTHETIC] and SYNTHETIC in done.out
    assert "synthetic/tiny · float32" in done.out and "synthetic/tiny" in done.err
    assert "target=synthetic/tiny" in json.loads((done.folder / "provenance.json").read_text())["command"]
    assert OmegaConf.load(done.folder / "config.yaml").target == "synthetic/tiny"
    assert (done.folder / "plot.png").exists()


def test_replies_walk_the_cycle_and_acceptance_is_the_one_asked_for(pair: Any) -> None:
    done = pair("drafter.agreement=0.5", "max_new_tokens=256", "baselines=[hf_generate]")
    assert list(done.summary["arms"]) == ["plain", "hf_generate", "synthetic/tiny"]
    assert [arm["identical"] for arm in done.summary["arms"].values()] == [[4, 4]] * 3
    following = successors(V).tolist()
    for line in done.lines:
        tokens = line["tokens"]
        assert len(tokens) == 256 and line["error"] is None
        assert all(following[before] == after for before, after in pairwise(tokens))
    drafts = [line for line in done.lines if line["arm"] == "synthetic/tiny"]
    shares = [position for line in drafts for position in line["metrics"]["positions"]]
    # Not all of the cycle is tested, since nothing is drafted for bonus tokens.
    assert sum(p["accepted"] for p in shares) / sum(p["tested"] for p in shares) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(("agreement", "share"), [(0, 0.0), (1, 1.0)])
def test_nothing_and_everything(pair: Any, agreement: float, share: float) -> None:
    done = pair(f"drafter.agreement={agreement}", "baselines=[]")
    depths = done.summary["arms"]["synthetic/tiny"]["positions"]
    assert depths[0]["share"] == share and all(depth["share"] in (share, None) for depth in depths)


def test_demo_prompts_start_all_over_the_cycle() -> None:
    tokenizer = Synthetic("synthetic/qwen3-8b").tokenizer
    starts = {tokenizer(prompt.turns[-1]).input_ids[-1] for prompt in data.demo()}
    assert len(starts) == len(data.demo())


def test_from_a_shell(tmp_path: Path) -> None:
    pair = ("target=synthetic/tiny", "drafter=synthetic/tiny", "drafter.agreement=0.5")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *pair, "experiment=smoke", f"hydra.run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=CONF.parent,
    )
    assert done.returncode == 0, done.stderr
    assert SYNTHETIC in done.stdout and "no chat template" in done.stderr
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("target=synthetic/qwen3-9b", "verifier: there is no model 'synthetic/qwen3-9b': choose among"),
        ("drafter.model=synthetic/huge", "drafter: there is no model 'synthetic/huge': choose among"),
        ("drafter.agreement=2", "agreement must be from 0 to 1, not 2"),
    ],
)
def test_a_wrong_value_is_one_line(pair: Any, override: str, told: str) -> None:
    done = pair(override)
    assert done.status == 1 and told in done.said and "Traceback" not in done.said


def test_real_targets_need_no_remark() -> None:
    assert remarks("Qwen/Qwen3-8B") == () and remarks("smollm2-135m-instruct") == ()


def test_virtual_time_is_computed_and_said_so(pair: Any) -> None:
    options = ("channel=simulated", "drafter.agreement=0.5", "forecast=early_exit_topk", "max_new_tokens=40")
    done, again, slow = (
        pair(*options, *more, folder=folder)
        for folder, more in (("a", ()), ("b", ()), ("c", ("channel.costs.early=3",)))
    )
    assert done.status == 0, done.said
    assert done.summary["title"].startswith("synthetic/tiny · float32 · virtual time")
    assert VIRTUAL in done.said and VIRTUAL in done.summary["remarks"]
    assert "speeds are real" not in done.said
    assert "hf_generate has no virtual time and is left out" in done.said
    assert json.loads((done.folder / "provenance.json").read_text())["clock"] == "virtual"
    arms = done.summary["arms"]
    assert list(arms) == ["plain", "synthetic/tiny"]
    assert arms["plain"]["tokens_per_second"] == pytest.approx(1e3 / 4.35)
    assert again.summary["arms"] == arms
    late = slow.summary["arms"]["synthetic/tiny"]
    assert late["speedup"] < arms["synthetic/tiny"]["speedup"]
    # A longer way of the early message is the rendezvous', not the target's work.
    told, early = arms["synthetic/tiny"]["ahead"], OmegaConf.load(done.folder / "config.yaml").channel.costs.early
    assert arms["plain"]["ahead"] is None and "drafting ahead" in done.out
    assert late["ahead"]["target_idle_ms"] - told["target_idle_ms"] == pytest.approx(3 - early, abs=0.05)
    assert told["rendezvous_ms"] == pytest.approx(told["target_idle_ms"] - told["exposed_ms"])
    assert set(told["hits"]["0"]) == {"outcomes", "prepared"} and 0 <= told["fallback"] <= 1


def test_virtual_time_in_turns(pair: Any) -> None:
    done = pair("channel=simulated", "drafter.agreement=1", "max_new_tokens=61")
    arm = done.summary["arms"]["synthetic/tiny"]
    # A prompt, then ten rounds: five steps of 0.84, a verification of 6 tokens, the host.
    target, drafter, host = 4.35 + 10 * 4.76, 10 * 5 * 0.84, 10 * 0.02
    assert arm["tokens_per_second"] == pytest.approx(61e3 / (target + drafter + host))
    assert arm["shares"]["drafter"] == pytest.approx(drafter / (target + drafter + host))
