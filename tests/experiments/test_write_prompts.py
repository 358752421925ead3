"""Prompts that a target writes: what is in the files, and that they come again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from experiments import data
from experiments.requests import own
from experiments.write_prompts import before_user, main, sentences, tasks
from verifiers import FullVerifier

SIZES = shlex.split(
    "--turns 512 --turn-tokens 96 --passages 6 --passage-tokens 8 --sentences 4 "
    "--rows 256 --dtype float32 --device cpu"
)


def test_files_are_prompts_and_come_again(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        main(["--target", str(tiny_model_dir), "--out", str(tmp_path / name), *SIZES])
    for name in ("turns.jsonl", "tasks.jsonl"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    main(["--target", str(tiny_model_dir), "--out", str(tmp_path / "other"), *SIZES, "--seed", "1"])
    assert (tmp_path / "other" / "tasks.jsonl").read_bytes() != (tmp_path / "first" / "tasks.jsonl").read_bytes()
    found = data.jsonl(tmp_path / "first" / "tasks.jsonl")
    assert {prompt.category for prompt in found} >= {"passages", "translations", "grid"}
    assert len(found) == 6 + 4 + len(own(0))
    assert all(prompt.source for prompt in found if prompt.category == "translations"), (
        "their topics are held out whole"
    )


def test_a_target_that_ends_no_turn_in_time_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--turn-tokens"):
        main(["--target", str(tiny_model_dir), "--out", str(tmp_path), *SIZES, "--turn-tokens", "1"])


def test_what_is_refused_is_refused_before_anything_is_written(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.write_prompts.replies", lambda *_: pytest.fail("the target was asked"))
    monkeypatch.setattr("experiments.write_prompts.before_user", refuse)
    with pytest.raises(ValueError, match="no chat template"):
        main(["--target", str(tiny_model_dir), "--out", str(tmp_path), *SIZES])


def refuse(tokenizer: object) -> str:
    raise ValueError("no chat template")


def test_a_target_that_writes_no_passage_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--passages"):
        main(["--target", str(tiny_model_dir), "--out", str(tmp_path), *SIZES, "--passages", "0"])


def test_half_of_the_tasks_ask_a_question_on_one_of_their_texts() -> None:
    texts = {"owls": ["Owls fly.", "Owls eat."], "tea": ["Tea is hot."]}
    asked = list(tasks([(topic, text) for topic, some in texts.items() for text in some], 40, 0))
    assert {prompt.source for prompt in asked} == set(texts)
    for number, prompt in enumerate(asked, start=1):
        (said,) = prompt.turns
        held = [text for some in texts.values() for text in some if text in said]
        assert held and set(held) <= set(texts[prompt.source])
        assert number % 2 or prompt.source in said.split("\n\n")[1]


def test_sentences_are_whole_and_of_some_length() -> None:
    long = "word " * 60 + "end."
    text = f"It grew by 3.5 percent in the year 1999. Too short. {long}\nThey live in the old town hall! And there"
    text += " they will stay until the"
    assert sentences(text) == ["It grew by 3.5 percent in the year 1999.", "They live in the old town hall!"]


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
