"""Prompts that a target writes itself, so that heads learn from much: ``python -m experiments.write_prompts``.

Two files for ``specdec-train prompts=[…]``. ``turns.jsonl``: behind the opening of a user's turn a model that was
taught to chat goes on with what a user would say (Magpie, Xu et al., arXiv 2406.08464). ``tasks.jsonl``: texts
that it wrote on topics, to be summarised or asked about, sentences of them that it translated, to be translated
back, and the project's own prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.prompt import Prompt
from experiments.replies import Text, ids_of, replies
from experiments.requests import GRID, PROMPTS, own
from specdec import Sampling
from specdec.prompts import encode
from verifiers import FullVerifier

PASSAGES = PROMPTS / "passages.json"
MARK = "\x00"  # stands for what a user says
WORDS = 3  # of a turn that is kept
MOST = 5  # passages of a prompt
SENTENCE_TOKENS = 64  # of a translated sentence, at most
JOINED = "\n"
ENDS = re.compile(r"(?<=[.!?])\s+|\n+")  # of sentences
SENTENCE = range(24, 201)  # characters of one that is translated


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files."""
    options = parsed(arguments)
    verifier = FullVerifier(options.target, dtype=options.dtype, device=options.device)
    before_user(verifier.tokenizer)  # raises before anything is written
    options.out.mkdir(parents=True, exist_ok=True)
    texts = passages(verifier, options)
    further = [*tasks(texts, options.passages, options.seed), *translations(verifier, texts, options)]
    said = {
        "turns": turns(verifier, options.turns, options.turn_tokens, options.rows, options.seed),
        "tasks": [*further, *own(options.seed)],
    }
    for name, prompts in said.items():
        count = keep(options.out / f"{name}.jsonl", prompts)
        print(f"{count} prompts in {options.out / name}.jsonl", file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--out", type=Path, required=True, help="a directory")
    parser.add_argument("--turns", type=int, default=8192, help="to ask for; those that do not end are left out")
    parser.add_argument("--turn-tokens", type=int, default=96, help="of a turn, at most")
    parser.add_argument("--passages", type=int, default=2048, help="texts to ask for, and prompts to make of them")
    parser.add_argument("--passage-tokens", type=int, default=256, help="of a text, at most")
    parser.add_argument("--sentences", type=int, default=512, help="to have translated, at most one of a text")
    parser.add_argument("--rows", type=int, default=64, help="texts at a time")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def turns(verifier: FullVerifier, count: int, most: int, rows: int, seed: int) -> Iterator[Prompt]:
    """What the target says in a user's place, as far as it comes to an end; each once.

    Raises:
        ValueError: the target has no chat template, or one that says no more than the user does; or no turn ended.
    """
    opening, seen = encode(before_user(verifier.tokenizer), verifier.tokenizer)[0][0], set()
    for texts in replies(verifier, [opening] * count, most, rows, Sampling(temperature=1.0), seed):
        for text in texts:
            said = decoded(text, verifier).strip()
            if text.tokens[-1] in verifier.end_tokens and len(said.split()) >= WORDS and said not in seen:
                seen.add(said)
                yield Prompt(f"turns/{len(seen)}", "turns", (said,))
    if not seen:
        raise ValueError(f"none of {count} turns ended within {most} tokens: raise --turns or --turn-tokens")


def before_user(tokenizer: Any) -> str:
    """What a chat template puts before a user's first words. Raises ValueError where there is nothing."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the target has no chat template: nothing makes it speak as a user would")
    whole = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    before, mark, _ = whole.partition(MARK)
    if not mark or not before:
        raise ValueError("the target's chat template does not open a user's turn")
    return str(before)


def passages(verifier: FullVerifier, options: argparse.Namespace) -> list[tuple[str, str]]:
    """Topics, and a text that the target wrote on each. Raises ValueError where it wrote none."""
    kinds, topics = said_in(PASSAGES)["passages"], said_in(GRID)[0]["topics"]
    pairs = [(kind, topic) for kind in kinds for topic in topics]
    asked = [pairs[index % len(pairs)] for index in range(options.passages)]
    prompts = [ids_of(Prompt("", "", (kind.format(topic),)), verifier) for kind, topic in asked]
    sampling, seed = Sampling(temperature=0.7), options.seed + options.turns
    written = replies(verifier, prompts, options.passage_tokens, options.rows, sampling, seed)
    texts = [decoded(text, verifier).strip() for some in written for text in some]
    found = [(topic, text) for (_, topic), text in zip(asked, texts, strict=True) if text]
    if not found:
        raise ValueError(f"the target wrote nothing on {options.passages} topics: raise --passages")
    return found


def tasks(texts: Sequence[tuple[str, str]], count: int, seed: int) -> Iterator[Prompt]:
    """Prompts on one to five texts on a topic: half ask for a summary, half ask a question behind them."""
    known, rng = said_in(PASSAGES), random.Random(seed)
    by_topic: dict[str, list[str]] = {}
    for topic, text in texts:
        by_topic.setdefault(topic, []).append(text)
    for number in range(1, count + 1):
        topic, some = rng.choice(list(by_topic.items()))
        text = JOINED.join(rng.sample(some, rng.randint(1, min(MOST, len(some)))))
        if number % 2:
            said = rng.choice(known["summaries"]).format(text)
        else:
            said = f"{text}\n\n{rng.choice(known['questions']).format(topic)}"
        yield Prompt(f"passages/{number}", "passages", (said,), source=topic)


def translations(
    verifier: FullVerifier, texts: Sequence[tuple[str, str]], options: argparse.Namespace
) -> list[Prompt]:
    """Prompts to translate what the target takes for a translation of a sentence of a text."""
    known, rng = said_in(PASSAGES), random.Random(options.seed)
    chosen = [(topic, rng.choice(sentences(text) or [text])) for topic, text in texts[: options.sentences]]
    prompts = [ids_of(Prompt("", "", (rng.choice(known["abroad"]).format(said),)), verifier) for _, said in chosen]
    sampling, seed = Sampling(temperature=0.7), options.seed + options.turns + options.passages
    written = replies(verifier, prompts, SENTENCE_TOKENS, options.rows, sampling, seed)
    abroad = [decoded(text, verifier).strip() for some in written for text in some]
    return [
        Prompt(f"translations/{n}", "translations", (rng.choice(known["home"]).format(said),), source=topic)
        for n, ((topic, _), said) in enumerate(zip(chosen, abroad, strict=True), start=1)
        if said
    ]


def sentences(text: str) -> list[str]:
    """Those of a text that come to an end and are neither short nor long."""
    return [said for said in ENDS.split(text) if len(said) in SENTENCE and said[-1] in ".!?"]


def decoded(text: Text, verifier: FullVerifier) -> str:
    """What a target wrote."""
    tokenizer: Any = verifier.tokenizer
    return str(tokenizer.decode(text.tokens[text.prompt :], skip_special_tokens=True))


def said_in(file: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def keep(path: Path, prompts: Iterable[Prompt]) -> int:
    """Write prompts in the project's own format; how many there are."""
    lines = [json.dumps(asdict(prompt), ensure_ascii=False) for prompt in prompts]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    main()
