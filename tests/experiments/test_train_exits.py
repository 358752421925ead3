"""Training of exits: its gradient, its data, and that held-out text gets likelier."""

from __future__ import annotations

import ast
import json
import sysconfig
from pathlib import Path

import pytest
import torch
from families import LAYERS, llama
from torch import Tensor

from experiments.exit_data import collect
from experiments.requests import library, openings, requests
from experiments.train_exits import distilled, main, started
from experiments.writing import Writing
from specdec.runtime import load
from specdec.translator import facts, translators
from verifiers import FullVerifier

CPU = torch.device("cpu")
PROMPTS = ["one two three", "the cat sat on", "the dog ran to the", "five six seven", "and the sea and", "one cat"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    said = [f"{text} {n}" for n in range(5) for text in PROMPTS][:29]  # so many that later turns do not fall alike
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in said))
    return path


def train(model: Path, prompts: Path, out: Path, *more: str) -> list[dict[str, dict[str, float]]]:
    """The log of a short training."""
    base = f"--target {model} --prompts {prompts} --out {out} --layers 1 3 --dtype float32 --device cpu"
    short = (
        "--replies 60 --new-tokens 12 --rows 16 --longest 150 --batch 32 --chunk 20 --check-every 20 --rate 0.01"
    )
    main([*base.split(), *short.split(), *more])
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.parametrize("width", [0, 4])
def test_held_out_text_gets_likelier(tiny_model_dir: Path, prompts: Path, tmp_path: Path, width: int) -> None:
    out = tmp_path / "exits.safetensors"
    log = train(tiny_model_dir, prompts, out, "--steps", "40", "--width", str(width))
    assert [record["step"] for record in log] == [0, 20, 40]
    for layer in ("1", "3"):
        assert log[-1]["held_kl"][layer] < 0.8 * log[0]["held_kl"][layer]
        assert log[-1]["held_mass_8"][layer] > log[0]["held_mass_8"][layer]
    assert {name for exit in translators(out).values() for name in exit.weights} >= {"matrix", "bias"}
    assert ("gate" in translators(out)[1].weights) == (width > 0)
    known = facts(out)
    assert (known["hidden"], known["depth"], known["layers"]) == ("32", "4", "[1, 3]")
    assert json.loads(known["recipe"])["prompts"] == ["prompts.jsonl"] and str(tmp_path) not in known["recipe"]


def test_a_seed_gives_the_same_exits_and_another_seed_others(
    tiny_model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    first, again, other = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    for out, seed in ((first, "3"), (again, "3"), (other, "4")):
        train(tiny_model_dir, prompts, out, "--steps", "3", "--seed", seed)
    found = [translators(out)[3].weights["matrix"] for out in (first, again, other)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_layer_that_is_not_there_is_an_error_before_a_reply_is_made(
    tiny_model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    line = f"--target {tiny_model_dir} --prompts {prompts} --out {tmp_path / 'x.safetensors'} --layers 2 4"
    with pytest.raises(ValueError, match="after layer 1 to 3 of this target, not 4"):
        main([*line.split(), "--device", "cpu"])


def test_the_gradient_is_that_of_the_divergence() -> None:
    module = llama()
    model, states_TPX = load(module).model, torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    exits = started([2], 32, 5, seed=0, device=CPU)
    with torch.no_grad():
        exits[2].weights["out"].normal_(generator=torch.Generator().manual_seed(2))
    loss = distilled(model, states_TPX, exits, chunk=3)
    mine = {name: weight.grad.clone() for name, weight in exits[2].weights.items()}

    def law(state_PX: Tensor) -> Tensor:
        return module.lm_head(module.model.norm(state_PX)).log_softmax(-1)

    final_PV, exit_PV = law(states_TPX[1]).detach(), law(exits[2](states_TPX[0]))
    expected = torch.nn.functional.kl_div(exit_PV, final_PV, reduction="batchmean", log_target=True)
    whole = torch.autograd.grad(expected, list(exits[2].weights.values()))
    assert loss[2] == pytest.approx(expected.item(), rel=1e-4)
    for gradient, name in zip(whole, exits[2].weights, strict=True):
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-5)
    assert all(weight.grad is None for weight in module.parameters())


def test_untrained_exits_change_nothing() -> None:
    state = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    for width in (0, 8):
        assert torch.equal(started([1], 32, width, 0, CPU)[1](state), state)


def test_no_prompt_is_both_learnt_from_and_held_out(prompts: Path) -> None:
    asked = list(requests([prompts], 200, seed=1))
    sides = [{request.prompt.turns for request in asked if request.held == held} for held in (True, False)]
    assert len(asked) == 200 and all(sides) and not sides[0] & sides[1]


def test_no_greedy_reply_is_asked_for_twice(prompts: Path) -> None:
    asked = [request for request in requests([prompts], 200, seed=1) if request.greedy]
    assert len(asked) > 20 and len({request.prompt.id for request in asked}) == len(asked)


def test_code_comes_from_the_standard_library_and_depends_on_the_seed_alone() -> None:
    texts = [[prompt.turns[0] for prompt in library(20, seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert {prompt.chat for prompt in library(20, 1)} == {True, False}
    assert any("def " in text or "import " in text for text in texts[0])


def test_functions_to_complete_end_with_their_docstring() -> None:
    file = Path(sysconfig.get_path("stdlib")) / "textwrap.py"
    found = openings(file)
    assert len(found) > 5
    for text in found:
        (function,) = ast.parse(text).body
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function) and len(function.body) == 1
    said = [prompt.turns[0] for prompt in library(40, 1) if not prompt.chat]
    assert 0.5 < sum(text.startswith("def ") for text in said) / len(said) < 1


def test_the_pool_holds_every_tap_of_both_sides(tiny_model_dir: Path, prompts: Path) -> None:
    verifier, heard = FullVerifier(tiny_model_dir, dtype="float32", device="cpu"), []
    asked = [request for request in requests([prompts], 60, seed=1) if request.prompt.chat]
    pool = collect(verifier, asked, Writing(new_tokens=6, rows=7, longest=150), [1, 2], heard.append)
    for side, held in ((pool.train, False), (pool.held, True)):
        assert side.shape[0] == 3 and side.shape[2] == 32
        replies = sum(request.held == held for request in asked)
        assert replies <= side.shape[1] <= 6 * replies  # replies may end early
    assert len(heard) == 1 and "minutes" in heard[0]


def test_without_a_prompt_that_fits_it_says_so(tiny_model_dir: Path, prompts: Path) -> None:
    verifier = FullVerifier(tiny_model_dir, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="ask for more replies, or longer prompts"):
        collect(verifier, list(requests([prompts], 9, 1)), Writing(longest=1), [LAYERS - 1], lambda _: None)
