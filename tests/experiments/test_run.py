"""The main job from its command line to its last artefact."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tiny_chat import save_tiny_chat

import experiments.run
import specdec
from experiments import session
from experiments.run import CONF
from experiments.timeline import read
from specdec import Result
from specdec.triage import Mismatch

ARMS = ["plain", "hf_generate", "ngram", "suffix", "early_exit"]
REPLIES = [("a", 0), ("a", 1), ("b", 0), ("c", 0)]


class Interrupting:
    """`specdec.generate` until a number of calls, then Ctrl-C, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
        self.left, self.generate = calls, specdec.generate
        monkeypatch.setattr(specdec, "generate", self)

    def __call__(self, *args: Any, **options: Any) -> Result:
        self.left -= 1
        if self.left == -1:
            raise KeyboardInterrupt
        return self.generate(*args, **options)


class Lying:
    """`specdec.generate`, but the third token of one drafter's replies is wrong."""

    def __init__(self, drafter: str) -> None:
        self.drafter, self.generate = drafter, specdec.generate

    def __call__(self, verifier: Any, drafter: Any, *args: Any, **options: Any) -> Result:
        result = self.generate(verifier, drafter, *args, **options)
        if type(drafter).__name__ != self.drafter:
            return result
        tokens = result.tokens.clone()
        tokens[0, 2] = (tokens[0, 2] + 7) % 300
        return dataclasses.replace(result, tokens=tokens)


def answers(outcome: Any) -> dict[tuple[str, int, str], list[int]]:
    return {(line["id"], line["turn"], line["arm"]): line["tokens"] for line in outcome.lines}


class TestDefaultArms:
    def test_every_artefact(self, default_run: Any) -> None:
        done = default_run
        assert done.status == 0, done.said
        assert set(answers(done)) == {(*reply, arm) for reply in REPLIES for arm in ARMS}
        assert len(done.lines) == len(REPLIES) * len(ARMS)
        assert (done.folder / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert list(read(done.folder / "trace.json")) == ARMS
        config = OmegaConf.load(done.folder / "config.yaml")
        assert config.verifier.model == config.target != "${target}"
        provenance = json.loads((done.folder / "provenance.json").read_text())
        assert shlex.split(provenance["command"])[:2] == ["specdec", "data=jsonl"]
        assert provenance["dtype"] == "float32" and provenance["versions"]["specdec"] == specdec.__version__

    def test_every_line(self, default_run: Any) -> None:
        for line in default_run.lines:
            assert line["error"] is None and line["metrics"]["new_tokens"] == len(line["tokens"]) > 0
            assert line["prompt_tokens"] > 5 and line["category"] == ("text" if line["id"] == "c" else "talk")
            assert line["metrics"]["faults"] == {} and line["metrics"]["seconds"] > 0

    def test_all_arms_say_the_same_in_float32(self, default_run: Any) -> None:
        done = default_run
        tokens = answers(done)
        assert all(tokens[key] == tokens[key[0], key[1], "plain"] for key in tokens)
        assert [arm["identical"] for arm in done.summary["arms"].values()] == [[4, 4]] * len(ARMS)
        assert "all 16 replies are plain decoding's, token for token" in done.said

    def test_the_summary_agrees_with_the_lines(self, default_run: Any) -> None:
        done = default_run
        arms = done.summary["arms"]
        assert list(arms) == ARMS and done.summary["prompts"] == {"finished": 3, "all": 3, "failed": {}}
        for name, arm in arms.items():
            mine = [line["metrics"] for line in done.lines if line["arm"] == name]
            assert arm["new_tokens"] == sum(m["new_tokens"] for m in mine)
            assert arm["seconds"] == pytest.approx(sum(m["seconds"] for m in mine))
            assert sum(arm["shares"].values()) == pytest.approx(1)
        assert arms["plain"]["accepted"]["tokens_per_round"] == 1 == arms["plain"]["speedup"]
        assert arms["ngram"]["accepted"]["tokens_per_round"] > 1
        assert arms["plain"]["categories"].keys() == {"talk", "text"}

    def test_the_order_rotates_and_turns_do_not_mix(self, default_run: Any) -> None:
        order = [(line["id"], line["turn"], line["arm"]) for line in default_run.lines]
        first, second, third = ARMS, ARMS[1:] + ARMS[:1], ARMS[2:] + ARMS[:2]
        wanted = [("a", 0, arm) for arm in first] + [("a", 1, arm) for arm in first]
        assert order == wanted + [("b", 0, arm) for arm in second] + [("c", 0, arm) for arm in third]

    def test_says_what_it_does_before_and_what_it_found_after(self, default_run: Any) -> None:
        done = default_run
        head = "float32 · "
        assert head in done.err and "greedy · acceptance ratio (lossless) · prompts: 3 · arms: 5" in done.err
        for word in (*ARMS, "talk (2)", "text (1)", "equal to", "accepted at"):
            assert word in done.out
        assert str(done.folder) in done.err


class TestChoice:
    def test_one_drafter_is_named_after_its_option(self, command: Any) -> None:
        done = command("drafter=suffix", "baselines=[]", "drafter.min_match=1")
        assert list(done.summary["arms"]) == ["plain", "suffix"]

    @pytest.mark.parametrize("none", ["drafter=plain", "~drafter"])
    def test_no_drafter_at_all(self, command: Any, none: str) -> None:
        done = command(none)
        assert done.status == 0 and list(done.summary["arms"]) == ["plain", "hf_generate"]

    def test_some_of_the_default_ones(self, command: Any) -> None:
        done = command("~drafter.suffix", "drafter.early_exit=null", "drafter.ngram.length=2", "baselines=null")
        assert list(done.summary["arms"]) == ["plain", "ngram"]
        assert len(done.summary["arms"]["ngram"]["positions"]) == 2

    def test_a_draft_model(self, command: Any, tiny_model_dir: Path) -> None:
        done = command("drafter=model", f"drafter.model={tiny_model_dir}", "baselines=[]")
        model = done.summary["arms"]["model"]
        assert model["identical"] == [4, 4] and model["shares"]["drafter"] > 0.2
        assert {depth["share"] for depth in model["positions"]} == {1.0}

    def test_a_target_without_a_chat_template_continues_text(self, command: Any, tmp_path: Path) -> None:
        done = command(f"target={save_tiny_chat(tmp_path / 'base', chat=False)}", "~drafter", "baselines=[]")
        assert done.status == 0 and "no chat template" in done.said

    def test_a_stop_token(self, command: Any) -> None:
        free = command("~drafter", "baselines=[]", folder="free")
        stop = free.lines[0]["tokens"][3]
        cut = command("~drafter", f"stop={stop}", folder="cut")
        first = free.lines[0]["tokens"].index(stop)
        assert [line["tokens"] for line in cut.lines[:2]] == [free.lines[0]["tokens"][: first + 1]] * 2


class TestSampling:
    def test_coupled_keeps_every_token(self, command: Any) -> None:
        done = command("acceptance=coupled", "sampling.temperature=0.9", "drafter=ngram")
        assert done.summary["arms"]["ngram"]["identical"] == [4, 4]
        assert done.summary["arms"]["hf_generate"]["identical"] is None and "temperature 0.9" in done.err

    def test_ratio_promises_the_law_only(self, command: Any) -> None:
        done = command("sampling.temperature=0.9", "drafter=ngram", "baselines=[]")
        assert done.status == 0 and done.summary["arms"]["ngram"]["identical"] is None
        assert "n/a" in done.out and "differ" not in done.said

    def test_the_seed_decides(self, command: Any) -> None:
        options = ("sampling.temperature=0.9", "~drafter")
        runs = [command(*options, f"seed={seed}", folder=f"run{i}") for i, seed in enumerate((1, 1, 2))]
        assert answers(runs[0]) == answers(runs[1]) != answers(runs[2])

    def test_a_lossy_rule_says_so(self, command: Any) -> None:
        done = command("acceptance=typical", "sampling.temperature=0.9", "drafter=ngram", "baselines=[]")
        assert "LOSSY" in done.out and done.summary["lossless"] is False


class TestInterrupt:
    def test_keeps_what_is_done_and_goes_on(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = command(folder="whole")
        # Warm-up takes 4 calls, prompt a 8, and of prompt b the second arm of the engine is cut off.
        Interrupting(monkeypatch, 4 + 8 + 1)
        cut = command()
        assert cut.status == 130 and "1 of 3 prompts finished" in cut.said
        assert cut.summary["prompts"]["finished"] == 1 and "plain" in cut.out
        assert f"hydra.run.dir={cut.folder}" in cut.err.split("to go on: specdec data=jsonl")[1]
        before = cut.lines
        assert 10 < len(before) < len(whole.lines)
        resumed = command()
        assert resumed.status == 0 and resumed.lines[: len(before)] == before
        assert answers(resumed) == answers(whole) and len(resumed.lines) == len(whole.lines)
        assert len(json.loads((cut.folder / "provenance.json").read_text())["resumed"]) == 1

    def test_before_the_first_reply(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        Interrupting(monkeypatch, 0)
        done = command()
        assert done.status == 130 and "0 of 3 prompts finished" in done.said and "Traceback" not in done.said
        assert command().status == 0

    @pytest.mark.parametrize("step", ["build", "save_plot"])
    def test_before_and_after_decoding(self, command: Any, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(session, step, stop)
            done = command("~drafter", "baselines=[]")
        assert done.status == 130 and "to go on: specdec" in done.err and "Traceback" not in done.said
        assert command("~drafter", "baselines=[]").status == 0

    def test_before_there_is_a_configuration(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(experiments.run, "configured", stop)
        assert command().status == 130

    def test_a_half_written_line_is_done_again(self, command: Any) -> None:
        done = command("baselines=[]")
        results = done.folder / "results.jsonl"
        results.write_bytes(results.read_bytes()[:-40])
        again = command("baselines=[]")
        assert again.status == 0 and len(again.lines) == len(done.lines) == 16
        assert "half written" in again.said

    def test_nothing_left_to_do(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        first = command()
        Interrupting(monkeypatch, 0)
        second = command()
        assert second.status == 0 and second.summary["arms"] == first.summary["arms"]

    def test_another_configuration_is_refused(self, command: Any) -> None:
        done = command("drafter=ngram", "baselines=[]")
        other = command("drafter=ngram", "baselines=[]", "drafter.length=3", "seed=5")
        assert other.status == 1 and "drafter.length: 10 then, 3 now; seed: 0 then, 5 now" in other.said
        assert other.lines == done.lines
        assert OmegaConf.load(done.folder / "config.yaml").seed == 0


class TestTrouble:
    def test_a_prompt_that_does_not_fit(self, command: Any) -> None:
        lines = command.prompts.read_text().splitlines()
        long = json.dumps({"id": "long", "text": "z" * 400})
        command.prompts.write_text("\n".join([long, *lines]) + "\n")
        done = command("drafter=ngram", "baselines=[]")
        assert done.status == 0 and done.summary["prompts"]["finished"] == 3
        assert "256 positions" in done.summary["prompts"]["failed"]["long"]
        errors = [line for line in done.lines if line["error"]]
        assert [line["id"] for line in errors] == ["long"] and "3 of 4 prompts finished" in done.said
        assert "long failed with plain" in done.said

    def test_no_prompt_at_all(self, command: Any) -> None:
        command.prompts.write_text(json.dumps({"id": "long", "text": "z" * 400}) + "\n")
        done = command("drafter=ngram")
        assert done.status == 1 and done.summary["arms"] == {} and not (done.folder / "plot.png").exists()

    def test_a_bug_is_no_success(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tokens that rounding does not explain end in an exit status that scripts notice."""
        monkeypatch.setattr(specdec, "generate", Lying("NgramDrafter"))
        done = command("baselines=[]", "data.limit=1")
        assert done.status == 1 and "2 of 6 replies differ from plain decoding's: 2 bugs" in done.said
        assert [m["arm"] for m in done.summary["mismatches"]] == ["ngram", "ngram"]
        assert {m["finding"]["kind"] for m in done.summary["mismatches"]} == {"bug"}

    @pytest.mark.parametrize(
        "law", [("acceptance=coupled", "sampling.temperature=1"), ("sampling.repetition_penalty=1.5",)]
    )
    def test_only_what_triage_can_judge_is_triaged(
        self, command: Any, monkeypatch: pytest.MonkeyPatch, law: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr(specdec, "generate", Lying("NgramDrafter"))
        done = command("baselines=[]", "data.limit=1", *law)
        assert done.status == 0 and "2 of 6 replies differ from plain decoding's: 2 not triaged" in done.said

    def test_triage_sees_the_prompt_and_both_replies(self, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[list[int], ...]] = []

        class Fake:
            def __init__(self, model: Any) -> None:
                assert model.vocab_size > 250

            def __call__(self, *tokens: list[int]) -> Mismatch:
                asked.append(tokens)
                return Mismatch(2, 5, 6, "tie-flip", 0.1, 0.1, 5, 6, 0.1, 0.2)

        monkeypatch.setattr(specdec, "generate", Lying("NgramDrafter"))
        monkeypatch.setattr(session, "Triage", Fake)
        done = command("baselines=[]", "data.limit=1")
        assert done.status == 0 and "2 of 6 replies differ from plain decoding's: 2 tie-flips" in done.said
        lines = {(line["arm"], line["turn"]): line for line in done.lines}
        for turn, (prompt, plain, other) in enumerate(asked):
            assert len(prompt) == lines["ngram", turn]["prompt_tokens"]
            assert (plain, other) == (lines["plain", turn]["tokens"], lines["ngram", turn]["tokens"])

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("drafter=model", "drafter.model must be set: pass drafter.model="),
            ("data.path=/nowhere.jsonl", "data: there is no file /nowhere.jsonl"),
            ("target=/nowhere", "verifier: there is no model at /nowhere"),
            ("baselines=[generate]", "baselines must be among hf_generate, not 'generate'"),
            ("max_new_tokens=0", "max_new_tokens must be a whole number of at least 1, not 0"),
            ("max_new_tokens=many", "max_new_tokens must be a whole number of at least 1, not 'many'"),
            ("stop=[a]", "stop must be a token id or a list of them"),
            ("sampling.temperature=-1", "sampling: temperature must be at least 0"),
            ("drafter.ngram.length=0", "drafter.ngram: length must be at least 1"),
            ("+drafter.ngram.lenght=3", "unexpected keyword argument 'lenght'"),
            ("+drafter.plain.length=3", "drafter.plain has no _target_"),
            ("+drafter.plain={_target_: drafters.NullDrafter}", "two arms are called 'plain'"),
        ],
    )
    def test_a_wrong_value_is_one_line(self, command: Any, override: str, told: str) -> None:
        done = command(override)
        assert done.status == 1 and told in done.said and "Traceback" not in done.said
        assert len(done.err.strip().splitlines()) < 4 and not (done.folder / "results.jsonl").exists()


class TestShell:
    """What does not need a model answers before torch is imported."""

    @staticmethod
    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "experiments.run", *arguments],
            capture_output=True,
            text=True,
            cwd=CONF.parent,
        )

    def test_help(self) -> None:
        done = self.shell("--help")
        assert done.returncode == 0 and "torch" not in done.stderr
        for group in CONF.iterdir():
            assert group.is_file() or group.name == "hydra" or f"\n{group.name}: " in done.stdout
        for words in ("specdec drafter=model drafter.model=my", "hydra.run.dir=", "max_new_tokens: 64"):
            assert words in done.stdout

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("drafter=ngrm", ["Could not find 'drafter/ngrm'", "early_exit_tree", "suffix"]),
            ("data=demos", ["Could not find 'data/demos'", "spec_bench"]),
            ("drafter.lenght=3", ["'drafter.lenght'", "Key 'lenght' is not in struct"]),
            ("max_tokens=3", ["'max_tokens'"]),
        ],
    )
    def test_a_mistyped_name(self, override: str, told: list[str]) -> None:
        done = self.shell(override)
        message = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
        assert done.returncode == 1 and all(words in message for words in told)
        lines = [line for line in message.splitlines() if not line.startswith("\t")]  # those name the options
        assert "Traceback" not in message and len(lines) < 20 and "| torch\n" not in done.stderr


def test_a_fixed_width_without_a_gpu_is_refused(command: Any) -> None:
    done = command("fixed_width=true", "drafter=ngram", "baselines=[]")
    assert done.status == 1 and "needs runtime=graphed" in done.said
