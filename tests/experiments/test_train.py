"""The training program on a head that learns in a second: what it promises, also when things go wrong."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from toy_head import KILL, ToyHead
from transformers import AutoModelForCausalLM

from specdec.translator import translators

TESTS = Path(__file__).parents[1]
WHOLE = ("steps=60", "check_every=30", "head.module.dropout=0.1")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "the", "cat", "dog", "ran", "sat", "on", "mat"]


@dataclass(frozen=True)
class Done:
    """What a training left."""

    status: int
    said: str
    folder: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "head" / "model.safetensors")

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("*"))


class Training:
    """`specdec-train` on a tiny model and its prompts: call it with overrides, in this process or another."""

    def __init__(self, model: Path, place: Path) -> None:
        self.model, self.place, self.prompts = model, place, place / "prompts.jsonl"
        said = [f"{a} {b} {a} {b}" for a in WORDS for b in WORDS[:3]]
        self.prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in said))

    def words(self, overrides: tuple[str, ...], folder: str) -> list[str]:
        base = [f"hydra.searchpath=[file://{TESTS / 'toy_conf'}]", "head=toy", f"target={self.model}"]
        base += [f"hydra.run.dir={self.place / folder}", f"cache={self.place / 'cache'}", "device=cpu"]
        base += ["dtype=float32", "precision=fp32", f"prompts=[{self.prompts}]", "replies=60", "new_tokens=24"]
        base += ["longest=120", "temperature=0", "steps=20", "batch=4", "rate=0.02", "check_every=10"]
        return [*base, "save_every=5", "check_tokens=24", *overrides]

    def __call__(self, *overrides: str, folder: str = "run") -> Done:
        out, status = io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
            patch.setattr(sys, "argv", ["specdec-train", *self.words(overrides, folder)])
            patch.setenv("COLUMNS", "120")
            status = run_main()
        return Done(status, " ".join(out.getvalue().split()), self.place / folder)

    def elsewhere(
        self, *overrides: str, folder: str = "run", launcher: tuple[str, ...] = (), **environment: str
    ) -> Done:
        command = [sys.executable, *launcher, "-m", "experiments.train", *self.words(overrides, folder)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.place, env=told(**environment), check=False
        )
        return Done(done.returncode, " ".join((done.stdout + done.stderr).split()), self.place / folder)


def told(**environment: str) -> dict[str, str]:
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}


def run_main() -> int:
    """The exit status of the command. Hydra takes the root logger over: it is given back as it was."""
    from experiments.train import main

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
    return 0


@pytest.fixture(scope="session")
def target(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model whose next token depends on the last one alone, so that the token two ahead can be told."""
    path = tmp_path_factory.mktemp("target")
    shutil.copytree(tiny_model_dir, path, dirs_exist_ok=True)
    module = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    module.save_pretrained(path)
    return path


@pytest.fixture
def training(target: Path, tmp_path: Path) -> Training:
    return Training(target, tmp_path)


@pytest.fixture(scope="module")
def done(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A training that is only read."""
    return Training(target, tmp_path_factory.mktemp("done"))(
        "steps=60", "check_every=30", "head.module.dropout=0.1"
    )


def test_loss_falls_and_acceptance_rises(done: Done) -> None:
    assert done.status == 0, done.said
    checks = [record for record in done.log if "accepted_tokens" in record]
    assert [record["step"] for record in checks] == [0, 30, 60]
    assert checks[0]["accepted_tokens"] < 1.1 and checks[-1]["accepted_tokens"] > 1.5
    assert checks[-1]["held_ahead"] < 0.5 * checks[0]["held_ahead"]
    assert done.log[-1]["ahead"] < 0.5 * done.log[1]["ahead"]


@pytest.mark.parametrize("head", ["medusa", "hydra", "redrafter"])
def test_heads_of_the_project_learn(training: Training, head: str) -> None:
    learnt = training(f"head={head}", "steps=40", "check_every=40", "rate=0.01")
    assert learnt.status == 0, learnt.said
    first, last = (record for record in learnt.log if "accepted_tokens" in record)
    assert last["accepted_tokens"] > first["accepted_tokens"] + 0.3


def test_exits_learn_without_a_drafter(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The target of the other tests has nothing to learn for them: its last state is its first."""
    exits = ("head=exit", "head.module.layers=[1,3]", "head.module.width=4", "batch=8", "check_every=100")
    done = Training(tiny_model_dir, tmp_path)(*exits, "steps=100", "rate=0.01")
    assert done.status == 0 and "held out exit 1" in done.said, done.said
    first, last = (record for record in done.log if "held_exit 1" in record)
    for layer in ("1", "3"):
        assert last[f"held_exit {layer}"] < 0.8 * first[f"held_exit {layer}"]
    card = (done.folder / "head" / "README.md").read_text()
    assert "| held-out loss `exit 3` |" in card and "per forward" not in card and "draft head" not in card
    assert list(translators(done.folder / "head" / "exits.safetensors")) == [1, 3]
    wrong = Training(tiny_model_dir, tmp_path)("head=exit", "head.module.layers=[2,4]", folder="wrong")
    assert wrong.status == 1 and "different layers from 1 to 3, not [2, 4]" in wrong.said
    assert "writing replies" not in wrong.said


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_target_of_another_type(training: Training, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.train_build.pick_dtype", lambda *_: torch.bfloat16)
    ended = training("head=redrafter", "dtype=bfloat16", f"precision={precision}", "steps=2")
    assert ended.status == 0, ended.said


def test_every_step_is_logged_and_said_are_time_memory_and_disk(done: Done) -> None:
    assert [record["step"] for record in done.log] == list(range(61))
    rates = [record["rate"] for record in done.log[1:]]
    assert max(rates) <= 0.02 and rates[0] < max(rates) and 0 < rates[-1] < 0.01 * max(rates)
    assert "60 steps: about" in done.said and "of memory" in done.said and "of disk for checkpoints" in done.said
    assert "step 60: held out" in done.said


def test_the_head_comes_with_a_card_and_where_it_is_from(done: Done, target: Path) -> None:
    card = (done.folder / "head" / "README.md").read_text()
    origin = json.loads((done.folder / "head" / "provenance.json").read_text())
    last = done.log[-1]["accepted_tokens"]
    assert f"| tokens per forward of the target | {last:.3f}" in card and origin["accepted_tokens"] == last
    assert f"base_model: {target.name}" in card and "prompts.jsonl; code of" in card and "rate: 0.02" in card
    assert "'prompts=[prompts.jsonl]'" in card
    assert str(done.folder.parent) not in card and str(target) not in card
    assert origin["git"] is None or origin["git"]["revision"] in card
    assert origin["command"].startswith("specdec-train head=toy")
    assert done.checkpoints == ["step-00000055.pt", "step-00000060.pt"]


def test_killed_and_resumed_it_ends_as_if_nothing_had_been(training: Training, done: Done) -> None:
    killed = training.elsewhere(*WHOLE, **{KILL: "38"})
    assert killed.status == -signal.SIGKILL and killed.checkpoints == ["step-00000030.pt", "step-00000035.pt"]
    assert killed.log[-1]["step"] == 37 and not (killed.folder / "head").exists()
    whole = training(*WHOLE, "resume=true")
    assert whole.status == 0 and "going on behind step 35" in whole.said and "writing replies" not in whole.said
    assert whole.log == done.log
    assert all(torch.equal(whole.weights[name], weight) for name, weight in done.weights.items())
    other = training(*WHOLE, "seed=1", folder="other")
    assert not torch.equal(other.weights["linear.weight"], whole.weights["linear.weight"])


def test_only_with_resume_it_goes_on_and_only_with_the_same_values(training: Training) -> None:
    assert training("steps=5").status == 0
    again = training("steps=5", f"out={training.place / 'new'}")
    assert again.status == 1 and "pass resume=true to go on with it" in again.said
    other = training("steps=6", f"out={training.place / 'new'}", "resume=true")
    assert other.status == 1 and "steps: 5 then, 6 now" in other.said
    finished = training("steps=5", "resume=true")
    assert finished.status == 1 and "the training is finished" in finished.said


@pytest.mark.parametrize("save_every", [3, 100])
def test_a_loss_that_is_no_number_ends_it_and_the_state_before_is_kept(
    training: Training, save_every: int
) -> None:
    ended = training("+head.module.nan_at=5", f"save_every={save_every}")
    assert ended.status == 1 and "step 5, batch 1 of 1: the loss 'ahead' is nan" in ended.said
    assert ended.checkpoints[-1] == "step-00000004.pt" and ended.checkpoints[-1] in ended.said
    kept = torch.load(ended.folder / "checkpoints" / ended.checkpoints[-1], weights_only=True)
    assert all(torch.isfinite(weight).all() for weight in kept["weights"].values())
    assert not (ended.folder / "head").exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_costs_checkpoints_and_no_training(
    training: Training, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = torch.save, iter(range(9))
    with monkeypatch.context() as patch:  # from the second checkpoint on
        patch.setattr(torch, "save", lambda *given: full() if next(count) else save(*given))
        finished = training("steps=12")
    assert finished.status == 0 and finished.checkpoints == ["step-00000005.pt"]
    assert (
        "checkpoint of step 10 could not be written" in finished.said
        and "step-00000005.pt, stays" in finished.said
    )
    assert (finished.folder / "head" / "model.safetensors").exists()


def test_a_head_that_cannot_be_written_is_written_by_resuming(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ToyHead, "save", full)
        ended = training("steps=5")
    assert ended.status == 1 and "no step is trained again" in ended.said
    assert sorted(path.name for path in ended.folder.glob("head*")) == []
    resumed = training("steps=5", "resume=true")
    assert resumed.status == 0 and [record["step"] for record in resumed.log] == list(range(6))


def test_a_damaged_checkpoint_is_passed_over(training: Training) -> None:
    assert training("steps=5", "save_every=2", "keep=3").status == 0
    shutil.rmtree(training.place / "run" / "head")
    newest = training.place / "run" / "checkpoints" / "step-00000005.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = training("steps=5", "save_every=2", "keep=3", "resume=true")
    assert resumed.status == 0 and "cannot be read and is left out" in resumed.said
    assert "going on behind step 4" in resumed.said


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("steps=0",), "steps must be a whole number of at least 1, not 0"),
        (("rate=0",), "rate must be a number above 0"),
        (("rate=nan",), "rate must be a number above 0"),
        (("warmup=2",), "warmup must be a number from 0 to 1"),
        (("clip=-1",), "clip must be a number above 0"),
        (("betas=[0.9]",), "betas must be two numbers"),
        (("decay=step",), "decay must be one of cosine, linear"),
        (("precision=fp16",), "precision must be one of auto, bf16, fp32"),
        (("prompts=mine.jsonl",), "prompts must be a list of files"),
        (("prompts=[/nowhere.jsonl]",), "there is no file /nowhere.jsonl"),
        (("target=/nowhere",), "there is no model at /nowhere"),
        (("head.module=null",), "head.module has no _target_: pass head=<option>"),
        (("+head.module.depth=3",), "unexpected keyword argument 'depth'"),
        (("+head.drafter.length=3",), "head.drafter: ToyDrafter.__init__() got an unexpected keyword"),
        (("head.drafter.head=mine",), "must leave one value open (???)"),
        (("head.module._target_=builtins.dict",), "dict is no nn.Module with losses and save"),
        (("head.module.layer=9",), "ToyHead reads behind layer 9, but the target has 4 layers"),
        (("longest=1",), "no reply is left to learn from: ask for more replies, or for longer prompts"),
        (("new_tokens=300",), "new_tokens=300 leaves no prompt: the target has 256 positions"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(training: Training, overrides: tuple[str, ...], told: str) -> None:
    ended = training(*overrides)
    assert ended.status == 1 and told in ended.said and "Traceback" not in ended.said
    assert not (ended.folder / "log.jsonl").exists() and not ended.checkpoints


def test_bfloat16_only_where_the_device_has_it(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.train_build.pick_dtype", lambda *_: torch.float32)
    refused = training("precision=bf16", "steps=2")
    assert refused.status == 1 and "cpu does not compute in bfloat16: pass precision=fp32" in refused.said
    told = training("precision=auto", "steps=2")
    assert told.status == 0 and "the head is trained in float32" in told.said


def test_an_own_folder_is_not_overwritten(training: Training) -> None:
    mine = training.place / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    ended = training(f"out={mine}")
    assert ended.status == 1 and "pass another out=<folder>" in ended.said and (mine / "thesis.txt").exists()


def test_two_processes_learn_from_the_batches_of_one_that_accumulates_two(training: Training) -> None:
    alone = training("steps=6", "accumulate=2", folder="alone")
    assert alone.status == 0, alone.said
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--local-addr=127.0.0.1")
    both = training.elsewhere("steps=6", folder="both", launcher=torchrun)
    assert both.status == 0, both.said
    assert both.said.count("the head is in") == 1
    assert [record["step"] for record in both.log] == list(range(7))
    torch.testing.assert_close(both.weights, alone.weights, rtol=1e-3, atol=1e-5)
