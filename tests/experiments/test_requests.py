"""What a target is asked for: nothing twice, nothing both learnt from and held out, and code to complete."""

from __future__ import annotations

import ast
import json
import sysconfig
from pathlib import Path

import pytest

from experiments.requests import library, openings, requests

PROMPTS = ["one two three", "the cat sat on", "the dog ran to the", "five six seven", "and the sea and", "one cat"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    said = [f"{text} {n}" for n in range(5) for text in PROMPTS][:29]  # so many that later turns do not fall alike
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in said))
    return path


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
