"""Prompts: each loader gives what its file holds, says what it leaves out, and samples the same way twice."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from experiments import data

SPEC_BENCH = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FUNCTIONS = [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n    ", "test": ""} for i in range(3)]
PROBLEMS = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(3)]
CONF = Path(data.__file__).parents[1] / "conf" / "data"


def write(path: Path, *lines: object) -> Path:
    """A JSONL file: objects as JSON, strings and bytes as they are."""
    encoded = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
    path.write_bytes(b"".join((e if isinstance(e, bytes) else e.encode()) + b"\n" for e in encoded))
    return path


def questions(each: int = 4) -> list[dict[str, Any]]:
    """A small Spec-Bench: `each` questions of every part, part by part as in the real file."""
    kinds = [kind for kind in MT_BENCH + SPEC_BENCH[1:] for _ in range(each)]
    return [
        {"question_id": 81 + i, "category": kind, "turns": [f"say {i}"] + ["again"] * (kind in MT_BENCH)}
        for i, kind in enumerate(kinds)
    ]


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    return write(tmp_path / "question.jsonl", *questions())


class Hub:
    """Stands in for the package `datasets`: answers with `rows`, or raises them if they are an error."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] | Exception = []
        self.asked: list[tuple[Any, ...]] = []

    def load_dataset(self, path: str, name: str | None, *, split: str) -> list[dict[str, Any]]:
        self.asked.append((path, name, split))
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    return stand_in


def config(name: str) -> Any:
    return OmegaConf.load(CONF / f"{name}.yaml")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


class TestPrompt:
    def test_is_frozen_and_hashable(self) -> None:
        prompt = data.Prompt("a", "qa", ("hello",))
        assert prompt.chat and hash(prompt) == hash(data.Prompt("a", "qa", ("hello",), True))
        with pytest.raises(dataclasses.FrozenInstanceError):
            prompt.id = "b"  # type: ignore[misc]


class TestDemo:
    def test_every_line_is_used(self, caplog: pytest.LogCaptureFixture) -> None:
        prompts = data.demo()
        lines = (Path(data.__file__).parent / "prompts" / "demo.jsonl").read_text("utf-8").splitlines()
        assert len(prompts) == len(lines) and not warnings(caplog)

    def test_three_of_each_category(self) -> None:
        counts = Counter(prompt.category for prompt in data.demo())
        assert set(counts) == {*SPEC_BENCH, "code"} and min(counts.values()) >= 3

    def test_ids_are_unique_and_name_the_category(self) -> None:
        prompts = data.demo()
        assert len({prompt.id for prompt in prompts}) == len(prompts)
        assert all(prompt.id.startswith(f"demo/{prompt.category}/") for prompt in prompts)

    def test_turns_are_chat_text(self) -> None:
        prompts = data.demo()
        assert all(prompt.chat and prompt.turns for prompt in prompts)
        assert all(turn.strip() == turn != "" for prompt in prompts for turn in prompt.turns)

    def test_some_conversations_have_two_turns(self) -> None:
        assert {p.category for p in data.demo() if len(p.turns) == 2} == {"mt_bench"}

    @pytest.mark.parametrize("category", ["summarization", "rag", "code"])
    def test_prompts_about_a_text_hold_the_text(self, category: str) -> None:
        lengths = [len(p.turns[0].split()) for p in data.demo() if p.category == category]
        assert all(80 <= length <= 250 for length in lengths)

    def test_code_is_python(self) -> None:
        for prompt in (p for p in data.demo() if p.category == "code"):
            code = prompt.turns[0].split("```python\n")[1].split("```")[0]
            compile(code, prompt.id, "exec")

    def test_small_limit_covers_all_categories(self) -> None:
        assert {p.category for p in data.demo(limit=7)} == {*SPEC_BENCH, "code"}


class TestLimit:
    @pytest.mark.parametrize("limit", [0, -1, 1.0, "3", True])
    def test_must_be_a_positive_whole_number(self, limit: Any, spec_file: Path) -> None:
        loaders: list[Callable[..., Any]] = [data.spec_bench, data.humaneval, data.gsm8k, data.jsonl]
        for load in loaders:
            with pytest.raises(ValueError, match="limit"):
                load(path=spec_file, limit=limit)
        with pytest.raises(ValueError, match="limit"):
            data.demo(limit=limit)

    def test_larger_than_the_file_is_all(self, spec_file: Path) -> None:
        assert len(data.spec_bench(spec_file, limit=999)) == 52
        assert set(data.demo(limit=999)) == set(data.demo())

    def test_a_smaller_sample_is_the_beginning_of_a_larger_one(self, spec_file: Path) -> None:
        whole = data.spec_bench(spec_file, limit=52)
        assert all(data.spec_bench(spec_file, limit=n) == whole[:n] for n in range(1, 53))

    def test_takes_the_first_lines_of_other_files(self, tmp_path: Path) -> None:
        file = write(tmp_path / "own.jsonl", *({"prompt": str(i), "category": "a"} for i in range(5)))
        assert [p.turns for p in data.jsonl(file, limit=2)] == [("0",), ("1",)]

    def test_counts_usable_lines(self, tmp_path: Path) -> None:
        file = write(tmp_path / "own.jsonl", "broken", {"prompt": "a"}, {"prompt": ""}, {"prompt": "b"})
        assert [p.turns for p in data.jsonl(file, limit=2)] == [("a",), ("b",)]


class TestSpecBench:
    def test_whole_file_in_its_order(self, spec_file: Path) -> None:
        prompts = data.spec_bench(spec_file)
        assert [p.id for p in prompts] == [f"spec_bench/{q['question_id']}" for q in questions()]
        assert [list(p.turns) for p in prompts] == [q["turns"] for q in questions()]
        assert all(p.chat for p in prompts)

    def test_parts_of_mt_bench_are_one_category(self, spec_file: Path) -> None:
        counts = Counter(p.category for p in data.spec_bench(spec_file))
        assert counts == {"mt_bench": 32} | dict.fromkeys(SPEC_BENCH[1:], 4)

    def test_limit_goes_round_the_categories(self, spec_file: Path) -> None:
        assert [p.category for p in data.spec_bench(spec_file, limit=14)] == [
            *SPEC_BENCH,
            *SPEC_BENCH,
            *SPEC_BENCH[:2],
        ]

    def test_limit_goes_round_the_parts_of_mt_bench(self, spec_file: Path) -> None:
        part = {f"spec_bench/{q['question_id']}": q["category"] for q in questions()}
        prompts = data.spec_bench(spec_file, limit=9, categories=["mt_bench"])
        assert [part[p.id] for p in prompts] == [*MT_BENCH, "writing"]

    def test_uneven_categories_are_used_up(self, tmp_path: Path) -> None:
        rows = [q for q in questions(each=2) if q["category"] in ("qa", "rag")][:3]
        prompts = data.spec_bench(write(tmp_path / "q.jsonl", *rows), limit=3)
        assert [p.category for p in prompts] == ["qa", "rag", "qa"]

    @pytest.mark.parametrize("categories", [["rag", "qa"], ("qa", "rag"), OmegaConf.create(["qa", "rag"])])
    def test_categories(self, spec_file: Path, categories: Any) -> None:
        prompts = data.spec_bench(spec_file, categories=categories)
        assert [p.category for p in prompts] == ["qa"] * 4 + ["rag"] * 4

    def test_one_category_by_its_name(self, spec_file: Path) -> None:
        assert {p.category for p in data.spec_bench(spec_file, categories="qa")} == {"qa"}

    @pytest.mark.parametrize("categories", [[], ["qa", "poetry"], "poetry"])
    def test_unknown_category(self, spec_file: Path, categories: Any) -> None:
        with pytest.raises(ValueError, match="among mt_bench, translation"):
            data.spec_bench(spec_file, categories=categories)

    def test_without_path_says_where_the_file_is(self) -> None:
        with pytest.raises(ValueError, match=r"data/spec_bench/question\.jsonl.*hemingkexia.*data\.path="):
            data.spec_bench()

    def test_needs_question_id_category_and_turns(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        good = questions()[0]
        lacking = [{k: v for k, v in good.items() if k != field} for field in good]
        prompts = data.spec_bench(write(tmp_path / "q.jsonl", *lacking, good))
        assert [p.id for p in prompts] == ["spec_bench/81"]
        assert [w.split(": ")[-1] for w in warnings(caplog)] == ["no question_id", "no category", "no turns"]


class TestHumanEval:
    def test_code_to_continue(self, tmp_path: Path) -> None:
        prompts = data.humaneval(write(tmp_path / "HumanEval.jsonl", *FUNCTIONS))
        assert prompts[1] == data.Prompt("HumanEval/1", "code", ("def f1():\n    ",), chat=False)
        assert len(prompts) == 3

    def test_compressed_as_published(self, tmp_path: Path) -> None:
        plain = write(tmp_path / "plain.jsonl", *FUNCTIONS)
        (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
        assert data.humaneval(tmp_path) == data.humaneval(plain)

    def test_through_datasets(self, hub: Hub, tmp_path: Path) -> None:
        hub.rows = FUNCTIONS
        assert data.humaneval(limit=2) == data.humaneval(write(tmp_path / "h.jsonl", *FUNCTIONS), limit=2)
        assert hub.asked == [("openai/openai_humaneval", None, "test")]


class TestGsm8k:
    def test_one_question_a_prompt(self, tmp_path: Path) -> None:
        prompts = data.gsm8k(write(tmp_path / "any.jsonl", *PROBLEMS))
        assert prompts[0] == data.Prompt("gsm8k/test/1", "math_reasoning", ("What is 0 + 1?",))
        assert len(prompts) == 3

    def test_split_chooses_the_file(self, tmp_path: Path) -> None:
        write(tmp_path / "test.jsonl", *PROBLEMS[:1])
        write(tmp_path / "train.jsonl", *PROBLEMS[1:])
        assert [p.id for p in data.gsm8k(tmp_path)] == ["gsm8k/test/1"]
        assert [p.id for p in data.gsm8k(tmp_path, split="train")] == ["gsm8k/train/1", "gsm8k/train/2"]

    def test_unknown_split(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="train, test, not 'validation'"):
            data.gsm8k(tmp_path, split="validation")

    def test_through_datasets(self, hub: Hub, tmp_path: Path) -> None:
        hub.rows = PROBLEMS
        file = write(tmp_path / "train.jsonl", *PROBLEMS)
        assert data.gsm8k(split="train") == data.gsm8k(file, split="train")
        assert hub.asked == [("openai/gsm8k", "main", "train")]


class TestHubOutOfReach:
    @pytest.mark.parametrize("load", [data.humaneval, data.gsm8k])
    def test_names_the_way_out(self, load: Callable[[], Any], hub: Hub) -> None:
        hub.rows = ConnectionError("no route to host")
        with pytest.raises(OSError, match=r"no route to host.*data\.path=") as caught:
            load()
        assert caught.value.__cause__ is hub.rows

    def test_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(OSError, match=r"openai/gsm8k.*datasets.*data\.path="):
            data.gsm8k()


class TestJsonl:
    @pytest.mark.parametrize("field", ["prompt", "text", "question"])
    def test_a_string_is_one_turn(self, tmp_path: Path, field: str) -> None:
        file = write(tmp_path / "own.jsonl", {field: " keep the spaces\n"})
        assert data.jsonl(file) == [data.Prompt("own/1", "custom", (" keep the spaces\n",))]

    def test_all_fields(self, tmp_path: Path) -> None:
        row = {"id": 7, "category": "chat", "turns": ["one", "two"], "chat": False, "else": [1]}
        assert data.jsonl(write(tmp_path / "own.jsonl", row)) == [data.Prompt("7", "chat", ("one", "two"), False)]

    def test_turns_come_before_prompt_and_null_is_absent(self, tmp_path: Path) -> None:
        rows = [{"prompt": "p", "turns": ["t"]}, {"prompt": "p", "turns": None, "id": None, "chat": None}]
        assert [p.turns for p in data.jsonl(write(tmp_path / "own.jsonl", *rows))] == [("t",), ("p",)]

    def test_prompt_field(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = write(tmp_path / "own.jsonl", {"body": "b", "prompt": "p"}, {"prompt": "p"}, {"body": ["x", "y"]})
        assert [p.turns for p in data.jsonl(file, prompt_field="body")] == [("b",), ("x", "y")]
        assert warnings(caplog) == [f"{file}, line 2 skipped: no body"]

    def test_defaults_for_lines_that_do_not_say(self, tmp_path: Path) -> None:
        file = write(tmp_path / "own.jsonl", {"text": "a"}, {"text": "b", "category": "c", "chat": True})
        first, second = data.jsonl(file, category="prose", chat=False)
        assert (first.category, first.chat) == ("prose", False)
        assert (second.category, second.chat) == ("c", True)

    def test_text_in_other_scripts(self, tmp_path: Path) -> None:
        text = "Grüße, 世界 \u2028 🙂"
        rows = (json.dumps({"text": text}, ensure_ascii=False), {"text": text})
        assert [p.turns for p in data.jsonl(write(tmp_path / "own.jsonl", *rows))] == [(text,), (text,)]

    def test_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        file = write(tmp_path / "own.jsonl", b'\xef\xbb\xbf{"text": "a"}\r', b'{"text": "b"}\r')
        assert [p.turns for p in data.jsonl(file)] == [("a",), ("b",)]

    def test_last_line_without_line_end(self, tmp_path: Path) -> None:
        file = tmp_path / "own.jsonl"
        file.write_text('{"text": "a"}\n{"text": "b"}')
        assert len(data.jsonl(file)) == 2


class TestBadLines:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"text": "cut', "not JSON"),
            (b'{"text": "\xff\xfe"}', "not JSON"),
            ("[" * 200_000, "not JSON"),
            (["a list"], "not a JSON object but list"),
            (None, "not a JSON object but NoneType"),
            ({}, "no turns or prompt or text or question"),
            ({"text": None}, "no turns or prompt or text or question"),
            ({"text": ""}, "text is empty"),
            ({"text": " \n\t"}, "text is empty"),
            ({"text": 3}, "text is not a text but int"),
            ({"turns": []}, "turns is empty"),
            ({"turns": ["a", ""]}, "turns is empty"),
            ({"turns": ["a", None]}, "turns is not a text but NoneType"),
            ({"turns": {"a": "b"}}, "turns is not a text but dict"),
            ({"text": "\ud800"}, "text is not valid Unicode"),
            ({"text": "a", "chat": "no"}, "chat is not true or false but 'no'"),
            ({"text": "a", "id": [1]}, "id is not a string or a number but list"),
            ({"text": "a", "id": True}, "id is not a string or a number but bool"),
            ({"text": "a", "category": ""}, "category is empty"),
        ],
    )
    def test_is_logged_and_the_others_run(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, line: object, reason: str
    ) -> None:
        file = write(tmp_path / "own.jsonl", {"text": "a"}, "", line, {"text": "b"})
        assert [p.id for p in data.jsonl(file)] == ["own/1", "own/4"]
        (warning,) = warnings(caplog)
        assert warning.startswith(f"{file}, line 3 skipped: {reason}")

    def test_blank_lines_are_no_fault(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = write(tmp_path / "own.jsonl", "", {"text": "a"}, "  \t", {"text": "b"}, "")
        assert [p.id for p in data.jsonl(file)] == ["own/2", "own/4"]
        assert not warnings(caplog)

    def test_second_of_two_equal_ids_is_left_out(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [{"id": "1", "text": "a"}, {"id": "x", "text": "b"}, {"id": 1, "text": "c"}]
        file = write(tmp_path / "own.jsonl", *rows)
        assert [p.turns for p in data.jsonl(file)] == [("a",), ("b",)]
        assert warnings(caplog) == [f"{file}, line 3 skipped: id '1' is already that of line 1"]

    @pytest.mark.parametrize("lines", [(), ("", " "), ("broken", {"text": ""})])
    def test_no_usable_line(self, tmp_path: Path, lines: tuple[object, ...]) -> None:
        with pytest.raises(ValueError, match=r"own\.jsonl has no usable line"):
            data.jsonl(write(tmp_path / "own.jsonl", *lines))


class TestPath:
    def test_directory(self, spec_file: Path) -> None:
        assert data.spec_bench(spec_file.parent) == data.spec_bench(str(spec_file))

    def test_home(self, spec_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(spec_file.parent))
        assert data.spec_bench("~/question.jsonl") == data.spec_bench(spec_file)

    @pytest.mark.parametrize("load", [data.spec_bench, data.humaneval, data.gsm8k, data.jsonl])
    def test_missing_file(self, load: Callable[..., Any], tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.jsonl"):
            load(tmp_path / "nowhere.jsonl")

    @pytest.mark.parametrize(
        ("load", "names"),
        [
            (data.spec_bench, r"holds no question\.jsonl"),
            (data.humaneval, r"holds no HumanEval\.jsonl or HumanEval\.jsonl\.gz"),
            (data.gsm8k, r"holds no test\.jsonl"),
            (data.jsonl, "is a directory: name a file in it"),
        ],
    )
    def test_directory_without_the_file(self, load: Callable[..., Any], names: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=names):
            load(tmp_path)


class TestConfigs:
    def test_there_is_one_for_each_loader(self) -> None:
        loaders = set(data.__all__) - {"Prompt"}
        assert {file.stem for file in CONF.glob("*.yaml")} >= loaders
        for name in loaders:
            assert config(name)["_target_"] == f"experiments.data.{name}"

    def test_demo(self) -> None:
        assert instantiate(config("demo")) == data.demo()

    @pytest.mark.parametrize(
        ("name", "row"),
        [
            ("spec_bench", questions()[0]),
            ("humaneval", FUNCTIONS[0]),
            ("gsm8k", PROBLEMS[0]),
            ("jsonl", {"text": "a"}),
        ],
    )
    def test_others_with_a_path(self, name: str, row: dict[str, Any], tmp_path: Path) -> None:
        (prompt,) = instantiate(config(name), path=str(write(tmp_path / "rows.jsonl", row)), limit=3)
        assert isinstance(prompt, data.Prompt)

    def test_own_file_needs_a_path(self) -> None:
        with pytest.raises(MissingMandatoryValue, match="path"):
            config("jsonl")["path"]
