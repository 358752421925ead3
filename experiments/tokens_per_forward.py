"""Tokens that a head with streams drafts in a forward: ``python -m experiments.tokens_per_forward --head DIR``.

Drafts are as long as they come in a fixed number of forwards, so that η is their mean length by that number. Those
that the end of a reply cut short say nothing, and are left out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import specdec
from drafters import StreamDrafter
from drafters.stream_head import StreamHead
from experiments.folder import write_json
from experiments.overlap_mass import prompts_of
from experiments.provenance import PROJECT, device_name, dtype_name, revision
from experiments.replies import ids_of
from specdec import Sampling
from specdec.trace import Round
from verifiers import FullVerifier


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure with every number of streams, write the JSON."""
    options = parsed(arguments)
    verifier = FullVerifier(options.target, dtype=options.dtype, device=options.device, runtime=options.runtime)
    head, sampling = StreamHead.load(options.head), Sampling(temperature=options.temperature)
    prompts = [ids_of(prompt, verifier) for prompt in prompts_of(options)]
    arms = [
        measured(
            verifier,
            paced(head, options.steps, streams, options.candidates),
            prompts,
            options.new_tokens,
            sampling,
        )
        for streams in range(head.count + 1)
    ]
    found = {
        "command": shlex.join(["python", "-m", "experiments.tokens_per_forward", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": revision(PROJECT),
        "torch": torch.__version__,
        "device": device_name(verifier.device),
        "dtype": dtype_name(verifier),
        "target": options.target,
        "head": str(options.head),
        "temperature": options.temperature,
        "prompts": len(prompts),
        "arms": arms,
    }
    write_json(options.out, found)
    for arm in arms:
        print(
            f"{arm['streams']} streams: {arm['tokens_per_forward']:.2f} tokens a forward in {arm['drafts']} "
            f"drafts of {arm['steps']} forwards, {arm['accepted']:.2f} tokens accepted"
        )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    parser.add_argument("--head", type=Path, required=True, help="a directory or file of a trained head")
    parser.add_argument("--steps", type=int, default=4, help="forwards of a draft")
    parser.add_argument("--candidates", type=int, default=1, help="tokens of the first stream side by side")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--spec-bench", type=Path, help="question.jsonl, or the directory that holds it")
    source.add_argument("--prompts", type=Path, help="a JSONL file; without either, the project's own")
    parser.add_argument("--limit", type=int, default=60, help="prompts, spread over the categories")
    parser.add_argument("--new-tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--out", type=Path, default=Path("tokens_per_forward.json"))
    return parser.parse_args(arguments)


def paced(head: StreamHead, steps: int, streams: int, candidates: int = 1) -> StreamDrafter:
    """A drafter whose drafts end with their forwards, never with their length."""
    return StreamDrafter(head, 1 + (steps - 1) * (1 + streams), steps, streams, candidates)


def measured(
    verifier: FullVerifier,
    drafter: StreamDrafter,
    prompts: Iterable[list[int]],
    new_tokens: int,
    sampling: Sampling,
) -> dict[str, Any]:
    """η and what was accepted, ready for JSON. Raises ValueError where replies are too short for whole drafts."""
    drafts: list[Round] = []
    for prompt in prompts:
        result = specdec.generate(verifier, drafter, prompt, new_tokens, sampling=sampling)
        drafts += whole(result.trace.rounds, drafter.size, new_tokens)
    if not drafts:
        raise ValueError(
            f"no draft of {drafter.size} tokens fits into replies of {new_tokens}: raise --new-tokens"
        )
    return {
        "streams": drafter.pace.streams,
        "steps": drafter.pace.steps,
        "candidates": drafter.pace.candidates,
        "drafts": len(drafts),
        "tokens_per_forward": mean(draft.drafted for draft in drafts) / drafter.pace.steps,
        "accepted": mean(draft.accepted for draft in drafts),
    }


def whole(rounds: Iterable[Round], size: int, new_tokens: int) -> Iterator[Round]:
    """Rounds of one row that had a draft, and room for the longest."""
    room = new_tokens
    for entry in rounds:
        if entry.drafted and room > size:
            yield entry
        room -= entry.committed


if __name__ == "__main__":
    main()
