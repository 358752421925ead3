"""The bench on a tiny pair: what it writes, and that its sums are right. No time decides anything."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from drafters import SyntheticDrafter
from experiments.bench_arms import Sample, Window, steady
from experiments.bench_figures import DEFINITIONS, predictions, take_turns
from experiments.bench_flashspec import refuse_uncompiled
from experiments.bench_huggingface import Arrivals
from experiments.bench_peers import WAYS, PeerArm, peer_arms
from experiments.bench_rows import ragged
from experiments.bench_steps import Curve, linear_bytes, text
from experiments.bench_task import between
from experiments.run import CONF
from specdec import Trace
from specdec.runtime.synthetic import Synthetic
from specdec.trace import Round, Span
from verifiers import FullVerifier

# As on machines without them; they stay unimportable in the process.
START = """
import sys
sys.modules.update(dict.fromkeys(["wandb", "datasets", "economize", "flashspec"]))
from experiments.bench import main
main()
"""
PAIR = ("target=synthetic/tiny", "drafter=synthetic/tiny", "device=cpu", "dtype=float32")
SMALL = ("repeats=2", "lengths=[2,4]", "drafts=[1,4]", "widths=[1,2,8]", "contexts=[64,128]", "copy_mib=4")
ROWS = ("rows=[1,3]", "rows_tokens=16")
ARMS = ["plain", "serial k=2", "serial k=4", "hf generate", "hf static", "hf assisted"]
ABSENT = ["economize-plain", "economize-draft", "flashspec-draft", "flashspec-auto"]
TWO_DEVICES = ["economize-sync", "economize-async"]  # asked for by name


def bench(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", START, *PAIR, *overrides, f"hydra.run.dir={folder}"],
        capture_output=True,
        text=True,
        cwd=CONF.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    done = bench(path, *SMALL, *ROWS, "prompt_tokens=64", "new_tokens=64", "peer_tokens=32", "timings=5")
    assert done.returncode == 0, done.stderr
    assert "synthetic weights" in done.stderr and "serial k=4" in done.stdout and "DIFFER" not in done.stdout
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    return json.loads((folder / "bench.json").read_text())


def numbers(node: Any) -> Iterator[float]:
    """All numbers in nested values."""
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from numbers(child)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield node


def test_writes_all_parts(found: Any, folder: Path) -> None:
    assert "synthetic" in found["title"] and (folder / "bench.png").read_bytes()[:4] == b"\x89PNG"
    assert found["provenance"]["command"].startswith("specdec-bench target=synthetic/tiny")
    assert [curve["context"] for curve in found["target"]] == [64, 128]
    assert [list(curve["milliseconds"]) for curve in found["target"]] == [["1", "2", "8"]] * 2
    assert [list(curve["milliseconds"]) for curve in found["drafter"]] == [["1", "4"]] * 2
    assert list(found["arms"]) == ARMS
    assert found["definitions"] == DEFINITIONS


def test_libraries_that_are_not_installed_are_left_out_with_the_reason(found: Any) -> None:
    assert list(found["skipped"]) == [name.replace("-", " ") for name in ABSENT]
    for name, reason in found["skipped"].items():
        assert reason.startswith("ModuleNotFoundError: ") and name.split()[0] in reason


def test_numbers_are_positive_and_finite(found: Any) -> None:
    parts = {key: found[key] for key in ("load_seconds", "bandwidth", "target", "drafter", "rows", "samples")}
    arms = [{key: value for key, value in arm.items() if key != "length"} for arm in found["arms"].values()]
    values = list(numbers([parts, arms]))
    assert len(values) > 100 and all(math.isfinite(value) and value > 0 for value in values)


def test_tokens_equal_plain_and_the_parts_of_a_round_are_known(found: Any) -> None:
    for name, arm in found["arms"].items():
        assert arm["tokens_equal_plain"], name
        assert arm["repeats"] == 2 and arm["new_tokens"] == (32 if name.startswith("hf") else 64)
        assert (arm["target_ms"] is None) == name.startswith("hf")
        assert (arm["predicted"] is not None) == name.startswith("serial")
    assert found["arms"]["plain"]["tau"] == found["arms"]["hf generate"]["tau"] == 1
    assert 1 < found["arms"]["serial k=2"]["tau"] <= 3 and 1 < found["arms"]["hf assisted"]["tau"] <= 6


def test_rows_are_compared_with_the_same_rows_one_by_one(found: Any) -> None:
    assert [(part["arm"], part["rows"]) for part in found["rows"]] == [
        (arm, rows) for arm in ("plain", found["rows"][-1]["arm"]) for rows in (1, 3)
    ]
    assert found["rows"][-1]["arm"] in ("serial k=2", "serial k=4")
    assert all(part["tokens_equal"] == part["rows"] for part in found["rows"])
    prompts = ragged(512, 4, 40)
    assert [len(prompt) for prompt in prompts] == [40, 34, 28, 22] and ragged(512, 1, 40) == prompts[:1]


def test_memory_is_that_of_both_models_and_their_caches(found: Any) -> None:
    module = Synthetic("synthetic/tiny").module(torch.float32, torch.device("cpu"))
    weights = 2 * 4 * sum(weight.numel() for weight in module.parameters())
    slots = found["memory"]["cache_bytes"] // 512  # of a token, see below
    assert found["memory"]["weight_bytes"] == weights and slots >= 2 * (64 + 64)
    assert found["memory"]["overhead"] is None and found["memory"]["reserved_bytes"] is None


def test_bytes_of_a_step() -> None:
    module = Synthetic("synthetic/tiny").module(torch.float32, torch.device("cpu"))
    layer = 64 * (4 * 16) * 2 + 64 * (2 * 16) * 2 + 3 * 64 * 128  # q and o, k and v, the MLP
    assert linear_bytes(module) == 4 * (2 * layer + 512 * 64)


def test_bytes_of_the_context(found: Any) -> None:
    first, second = found["target"]
    # Two layers, keys and values, two heads of width 16 in float32.
    assert [first["context_bytes"], second["context_bytes"]] == [64 * 512, 128 * 512]
    rate = found["bandwidth"]["best"]
    assert second["floor_ms"] == pytest.approx(1e3 * (second["weight_bytes"] + 128 * 512) / rate)


def test_steady_rounds_leave_out_prefill_and_the_end() -> None:
    trace = Trace()
    for index, committed in enumerate((1, 3, 2, 4, 1, 1)):
        start = 10.0 * index + (100 if index < 2 else 200)
        trace.spans += [Span("target", start + 4, start + 9), Span("drafter", start + 10, start + 13)]
        trace.rounds.append(Round(0, 3, 3, committed - 1, committed))
    window = steady(trace)
    assert (window.tokens, window.rounds) == (7, 3)
    assert (window.seconds, window.target) == (249 - 119, 15)
    assert window.draft == 9  # of the round before the first, and not that of the round which the end cuts


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="raise new_tokens"):
        steady(Trace(rounds=[Round(0, 0, 0, 0, 1)] * 3))


def failing(good_turns: int) -> Callable[[list[int]], Sample]:
    """Another library's way to decode that fails once it has had its turns."""
    turns: list[int] = []

    def decode(prompt: list[int]) -> Sample:
        turns.append(1)
        if len(turns) > good_turns:
            raise RuntimeError("cannot\ncompile")
        return Sample([1], 1.0, Window(1.0, 1, 1))

    return decode


@pytest.mark.parametrize("good_turns", [0, 1, 2])
def test_a_peer_that_fails_is_left_out_with_the_reason(good_turns: int) -> None:
    arms = [PeerArm("hf a", failing(9)), PeerArm("hf b", failing(good_turns))]
    records, skipped = take_turns(arms, 4, 3, 512, torch.device("cpu"))
    assert [(record.arm.name, len(record.samples)) for record in records] == [("hf a", 3)]
    assert skipped == {"hf b": "RuntimeError: cannot"}


def test_reads_of_several_tokens_without_the_prompt_and_the_end() -> None:
    times = [1.0, 5.0, 7.0, 7.0, 7.0, 8.0, 11.0]  # the end cuts the last read, whose tokens are not all timed
    assert between(times, [1, 1, 3, 1, 6], 2) == Window(8.0 - 5.0, 4, 2)
    assert between(times, [1, 1, 3, 1, 6], 1) == Window(8.0 - 1.0, 5, 3)
    with pytest.raises(ValueError, match="raise peer_tokens"):
        between(times, [1, 1, 5], 2)


def test_rounds_of_generate_without_the_prompt_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 5.0, 7.0, 10.0, 10.5])
    monkeypatch.setattr("experiments.bench_huggingface.time.perf_counter", lambda: next(times))
    arrivals = Arrivals()
    for count in (8, 1, 4, 3):  # the prompt, the round that reads it, two whole ones
        arrivals.put(torch.zeros(1, count))
    arrivals.put(torch.zeros(1))  # of five that were accepted, one was wanted
    assert arrivals.window == Window(10.0 - 5.0, 7, 2)


def test_too_few_rounds_of_generate_are_refused() -> None:
    arrivals = Arrivals()
    for _ in range(3):
        arrivals.put(torch.zeros(1))
    with pytest.raises(ValueError, match="raise peer_tokens"):
        _ = arrivals.window


def test_a_compilation_that_failed_is_no_compiled_arm() -> None:
    class Model:
        pass

    model: Any = Model()
    refuse_uncompiled(model)
    model._inc = Model()
    model._inc.compile_fallback_reason = None
    refuse_uncompiled(model)
    model._inc.compile_fallback_reason = "BackendError: no compiler"
    with pytest.raises(RuntimeError, match="no compiler"):
        refuse_uncompiled(model)


@pytest.mark.parametrize("name", ABSENT + TWO_DEVICES)
def test_a_library_that_is_installed_gives_the_targets_tokens(name: str) -> None:
    pytest.importorskip(name.split("-")[0])
    verifier = FullVerifier("synthetic/tiny", dtype="float32", device="cpu")
    drafter = SyntheticDrafter("synthetic/tiny", agreement=0.8, dtype="float32", device="cpu")
    (arm,) = peer_arms(verifier, drafter, [name], 40, 4)
    next_token = Synthetic("synthetic/tiny").successors.tolist()
    for turn in range(2):
        prompt = text(512, 16, turn)
        sample, wanted = arm(prompt), prompt[-1:]
        for _ in range(40):
            wanted.append(next_token[wanted[-1]])
        window = sample.window
        assert arm.name == name.replace("-", " ") and sample.tokens == wanted[1:]
        assert 0 < window.seconds < sample.seconds and 0 < window.tokens < 40
        assert (window.rounds == window.tokens) == name.endswith("plain")


@pytest.mark.parametrize("name", ["vllm", "economize"])
def test_an_unknown_peer_is_refused(name: str) -> None:
    unused: Any = None
    with pytest.raises(ValueError, match=f"peers must be among {', '.join(WAYS)}, not '{name}'"):
        peer_arms(unused, unused, ["generate", name], 8, 4)


def test_our_own_failure_is_not_hidden() -> None:
    class Ours:
        name, length = "plain", 0

        def __call__(self, prompt: list[int]) -> Sample:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        take_turns([Ours()], 4, 1, 512, torch.device("cpu"))


def test_predictions() -> None:
    target = Curve(8, 1, 1, 1.0, {1: 10.0, 3: 14.0})
    draft = Curve(8, 1, 1, 1.0, {1: 2.0, 2: 4.0})
    assert target.at(2) == 12 and target.at(9) == 14
    made = predictions(1, 2.0, (12.0, 2.0, 1.0), (10.0, 0.0, 5.0), target, draft)
    expected = {"predicted": 2, "predicted_from_target": 20 / 15, "predicted_from_parts": 20 / 15}
    assert made == pytest.approx(expected)
    assert predictions(0, 1.0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), target, draft) == {}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("target=smollm2-135m-instruct", "target must be one of the synthetic/ shapes"),
        ("contexts=[64,1000000]", "contexts of up to 1000000 and a step do not fit"),
        ("repeats=0", "repeats must be of whole numbers of at least 1, not 0"),
        ("peers=[vllm]", "peers must be among generate, static, assisted, economize-plain"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path: Path, override: str, told: str) -> None:
    done = bench(tmp_path, override)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1 and told in said and "Traceback" not in said
