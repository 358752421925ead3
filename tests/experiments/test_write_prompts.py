"""Prompts that a target writes: what is in the files, and that they come again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from experiments import data
from experiments.requests import own
from experiments.write_prompts import before_user, main, tasks
from verifiers import FullVerifier

SIZES = shlex.split(
    "--turns 512 --turn-tokens 96 --passages 6 --passage-tokens 8 --rows 256 --dtype float32 --device cpu"
)


def test_files_are_prompts_and_come_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        main(["--target", str(tiny_model_dir), "--out", str(tmp_path / name), *SIZES])
    for name in ("turns.jsonl", "tasks.jsonl"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    main(["--target", str(tiny_model_dir), "--out", str(tmp_path / "other"), *SIZES, "--seed", "1"])
    assert (tmp_path / "other" / "tasks.jsonl").read_bytes() != (tmp_path / "first" / "tasks.jsonl").read_bytes()
    found = data.jsonl(tmp_path / "first" / "tasks.jsonl")
    assert {prompt.category for prompt in found} >= {"passages", "grid"}
    assert len(found) == 6 + len(own(0))


def test_a_target_that_ends_no_turn_in_time_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--turn-tokens"):
        main(["--target", str(tiny_model_dir), "--out", str(tmp_path), *SIZES, "--turn-tokens", "1"])


def test_half_of_the_tasks_ask_a_question_on_one_of_their_texts() -> None:
    texts = [("owls", "Owls fly."), ("tea", "Tea is hot."), ("maps", "Maps fold.")]
    asked = [prompt.turns[0] for prompt in tasks(texts, 40, 0)]
    assert all(any(text in said for _, text in texts) for said in asked)
    questions = asked[1::2]
    assert all(said.split("\n\n")[0].count(".") in (1, 2, 3) for said in questions)
    for said in questions:
        passages, question = said.split("\n\n")
        (topic,) = (topic for topic, _ in texts if topic in question)
        assert dict(texts)[topic] in passages


def test_what_stands_before_a_users_words(tiny_model_dir: Path) -> None:
    tokenizer = FullVerifier(tiny_model_dir, dtype="float32", device="cpu").tokenizer
    said = tokenizer.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False)
    assert said.startswith(before_user(tokenizer) + "the cat")


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"], ids=["none", "bare"])
def test_a_template_that_opens_no_turn_is_refused(tiny_model_dir: Path, template: str | None) -> None:
    tokenizer = FullVerifier(tiny_model_dir, dtype="float32", device="cpu").tokenizer
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="chat template"):
        before_user(tokenizer)
