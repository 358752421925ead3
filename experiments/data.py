"""Prompts to decode: the project's own, three public benchmarks, and any JSONL file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from experiments.prompt import Prompt, check_limit, collect, only, read, round_robin, spread
from experiments.records import Record, find_file, flag_of, hub_rows, label_of, turns_of

__all__ = ["Prompt", "demo", "gsm8k", "humaneval", "jsonl", "spec_bench"]

_Path = str | PathLike[str]

_DEMO = Path(__file__).parent / "prompts" / "demo.jsonl"
_FIELDS = ("turns", "prompt", "text", "question")
_SPLITS = ("train", "test")
_MT_BENCH = frozenset(("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"))


def demo(limit: int | None = None) -> list[Prompt]:
    """The project's own prompts: three for each category of Spec-Bench and three for code.

    A `limit` takes from the categories in turn.

    Raises:
        ValueError: `limit` is not a positive whole number.
    """
    check_limit(limit)
    return spread(read(_DEMO, _own(_DEMO.stem)), limit)


def spec_bench(
    path: _Path | None = None, limit: int | None = None, categories: Sequence[str] | None = None
) -> list[Prompt]:
    """Spec-Bench (Xia et al., arXiv 2401.07851): 480 questions in six categories.

    The eight categories of MT-bench become one, `mt_bench`, as in Spec-Bench's own tables. A `limit` takes
    from the categories in turn, and within `mt_bench` from its eight parts in turn.

    Args:
        path: question.jsonl, or the directory that holds it.
        limit: how many prompts, all by default.
        categories: which categories, or the name of one; all by default.

    Raises:
        ValueError: no `path`, no usable line, a category that is not in the file, or `limit` is not a
            positive whole number.
        FileNotFoundError: there is no such file.
    """
    check_limit(limit)
    if path is None:
        raise ValueError(
            "spec_bench needs a file: take data/spec_bench/question.jsonl from the GitHub repository "
            "hemingkexia/Spec-Bench and pass data.path=<file or directory>"
        )
    prompts = read(find_file(path, ["question.jsonl"]), _spec_bench_prompt)
    if limit is not None:
        prompts = round_robin(prompts)  # over the parts of MT-bench, while they are still told apart
    return spread(only([_grouped(prompt) for prompt in prompts], categories), limit)


def humaneval(path: _Path | None = None, limit: int | None = None) -> list[Prompt]:
    """HumanEval (Chen et al., arXiv 2107.03374): 164 Python functions to complete, without a chat template.

    Args:
        path: HumanEval.jsonl or HumanEval.jsonl.gz, or the directory that holds it; by default it is loaded
            through Hugging Face `datasets`.
        limit: how many prompts, the first ones; all by default.

    Raises:
        ValueError: no usable line, or `limit` is not a positive whole number.
        FileNotFoundError: there is no such file.
        OSError: there is no `path` and `datasets` cannot load it.
    """
    check_limit(limit)
    if path is None:
        rows = hub_rows("openai/openai_humaneval", None, "test")
        return collect("openai_humaneval", enumerate(rows, start=1), _humaneval_prompt)[:limit]
    return read(find_file(path, ["HumanEval.jsonl", "HumanEval.jsonl.gz"]), _humaneval_prompt)[:limit]


def gsm8k(path: _Path | None = None, split: str = "test", limit: int | None = None) -> list[Prompt]:
    """GSM8K (Cobbe et al., arXiv 2110.14168): word problems, 1319 to test and 7473 to train.

    Args:
        path: a JSONL file, or the directory that holds test.jsonl and train.jsonl; by default it is loaded
            through Hugging Face `datasets`.
        split: `test` or `train`. Where `path` is a file, it only names the prompts.
        limit: how many prompts, the first ones; all by default.

    Raises:
        ValueError: no usable line, another `split`, or `limit` is not a positive whole number.
        FileNotFoundError: there is no such file.
        OSError: there is no `path` and `datasets` cannot load it.
    """
    check_limit(limit)
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, not {split!r}")

    def prompt(number: int, record: Record) -> Prompt:
        return Prompt(f"gsm8k/{split}/{number}", "math_reasoning", turns_of(record, ["question"]))

    if path is None:
        rows = hub_rows("openai/gsm8k", "main", split)
        return collect("gsm8k", enumerate(rows, start=1), prompt)[:limit]
    return read(find_file(path, [f"{split}.jsonl"]), prompt)[:limit]


def jsonl(
    path: _Path,
    limit: int | None = None,
    prompt_field: str | None = None,
    category: str = "custom",
    chat: bool = True,
) -> list[Prompt]:
    """Prompts from a file of one's own, one JSON object per line.

    An object has `turns` (a list) or `prompt`, `text` or `question` (a string), and may have `id`, `category`,
    `chat` and `source`. Lines that cannot be used are logged and left out, as are those that repeat an id.

    Args:
        path: the file, which may be compressed by gzip.
        limit: how many prompts, the first ones; all by default.
        prompt_field: the field that holds the prompt, if it has another name.
        category: of the lines that name none.
        chat: of the lines that do not say.

    Raises:
        ValueError: no usable line, or `limit` is not a positive whole number.
        FileNotFoundError: there is no such file.
    """
    check_limit(limit)
    file = find_file(path)
    fields = _FIELDS if prompt_field is None else (prompt_field,)
    return read(file, _own(file.stem, fields, category, chat))[:limit]


def _own(
    name: str, fields: Sequence[str] = _FIELDS, category: str = "custom", chat: bool = True
) -> Callable[[int, Record], Prompt]:
    """How lines in the project's own format become prompts."""

    def prompt(number: int, record: Record) -> Prompt:
        return Prompt(
            id=label_of(record, "id", f"{name}/{number}"),
            category=label_of(record, "category", category),
            turns=turns_of(record, fields),
            chat=flag_of(record, "chat", chat),
            source=None if record.get("source") is None else label_of(record, "source"),
        )

    return prompt


def _spec_bench_prompt(number: int, record: Record) -> Prompt:
    question = label_of(record, "question_id")
    return Prompt(f"spec_bench/{question}", label_of(record, "category"), turns_of(record, ["turns"]))


def _humaneval_prompt(number: int, record: Record) -> Prompt:
    return Prompt(label_of(record, "task_id"), "code", turns_of(record, ["prompt"]), chat=False)


def _grouped(prompt: Prompt) -> Prompt:
    return replace(prompt, category="mt_bench") if prompt.category in _MT_BENCH else prompt
