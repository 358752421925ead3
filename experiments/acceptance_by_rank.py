"""How often the r-th guess of a drafter is right: ``python -m experiments.acceptance_by_rank``.

A trace tells how deep a round was accepted, not which child it was, so ranks are measured here: the target answers
prompts by itself, the drafter reads along, and at every place of a reply it is noted which rank the drafter gives
to the target's token. The share of places by rank is what Sequoia (arXiv 2402.12374) plans trees from, at any
temperature: a child chosen for its rank is accepted as often as the target would have drawn it.

B rows, N tokens of a reply, M = N + 1, P places, V vocabulary.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drafters import EarlyExitDrafter, ModelDrafter
from experiments.folder import write_json
from experiments.overlap_mass import prompts_of
from experiments.provenance import PROJECT, device_name, dtype_name, revision
from experiments.replies import Text, ids_of, replies
from specdec import Draft, Sampling
from specdec.planner import accepted_by, likeliest_tree
from specdec.protocols import BranchingDrafter
from specdec.sequences import Sequences
from verifiers import FullVerifier


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, plan, write the JSON."""
    options = parsed(arguments)
    verifier = FullVerifier(options.target, dtype=options.dtype, device=options.device, runtime=options.runtime)
    drafter: Any = EarlyExitDrafter(options.exit_layer)
    if options.model:
        drafter = ModelDrafter(options.model, dtype=options.dtype, device=options.device, runtime=options.runtime)
    prompts = [ids_of(prompt, verifier) for prompt in prompts_of(options)]
    sampling = Sampling(temperature=options.temperature)
    texts = replies(verifier, prompts, options.new_tokens, options.rows, sampling)
    shares = by_rank([ranks(verifier, drafter, some) for some in texts], options.ranks)
    found = {
        "command": shlex.join(["python", "-m", "experiments.acceptance_by_rank", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": revision(PROJECT),
        "torch": torch.__version__,
        "device": device_name(verifier.device),
        "dtype": dtype_name(verifier),
        "target": options.target,
        "drafter": options.model or f"first {drafter.model.network.depth} layers",
        "temperature": options.temperature,
        "prompts": len(prompts),
        **shares,
        "trees": [planned(shares["acceptance"], size, options.depth) for size in options.nodes],
    }
    write_json(options.out, found)
    print(f"{found['drafter']}, {found['places']} places, share by rank:")
    print(" ".join(f"{share:.3f}" for share in found["acceptance"]))
    for tree in found["trees"]:
        print(f"{tree['nodes']} nodes, {tree['accepted']:.2f} accepted: {tree['paths']}")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="smollm2-135m-instruct")
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument("--model", help="a draft model; without one, the target's first layers")
    whose.add_argument("--exit-layer", type=int, help="how many of them; half without it")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--spec-bench", type=Path, help="question.jsonl, or the directory that holds it")
    source.add_argument("--prompts", type=Path, help="a JSONL file; without either, the project's own")
    parser.add_argument("--limit", type=int, default=60, help="prompts, spread over the categories")
    parser.add_argument("--new-tokens", type=int, default=64, help="of a reply")
    parser.add_argument("--rows", type=int, default=8, help="replies at a time")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--ranks", type=int, default=10, help="ranks that are told apart")
    parser.add_argument("--nodes", nargs="*", type=int, default=[8, 16, 32], help="sizes of trees to plan")
    parser.add_argument("--depth", type=int, help="levels of these trees at most")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--out", type=Path, default=Path("acceptance_by_rank.json"))
    return parser.parse_args(arguments)


@torch.inference_mode()
def ranks(verifier: FullVerifier, drafter: BranchingDrafter, texts: Sequence[Text]) -> Tensor:
    """int64 [P]: at every place of some replies, how many tokens the drafter finds likelier than the target's."""
    prompts = [list(text.tokens[: text.prompt]) for text in texts]
    counts = [len(text.tokens) - text.prompt for text in texts]
    seq = Sequences.start(prompts, max(counts), (), Sampling(), verifier.device)
    drafter.begin(verifier, seq)
    verifier.begin(seq)  # the target's first layers draft on its cache
    tokens_BN = torch.zeros(len(texts), max(counts), dtype=torch.int64)
    for row_N, text in zip(tokens_BN, texts, strict=True):
        row_N[: len(text.tokens) - text.prompt] = torch.tensor(text.tokens[text.prompt :])
    counts_B = torch.tensor(counts, device=verifier.device)
    window = Draft.chain(tokens_BN.to(verifier.device), seq.lengths, counts_B)
    own_BNV = drafter.look(seq.context(), window)[:, :-1]  # what stands behind the last token decides nothing
    said_BN1 = own_BNV.gather(-1, window.tokens[..., None])
    return (own_BNV > said_BN1).sum(-1)[window.depths > 0]


def by_rank(found: Iterable[Tensor], count: int) -> dict[str, Any]:
    """The share of places of each of the first ``count`` ranks, ready for JSON and for the planner."""
    found_P = torch.cat(list(found))
    shares = [float((found_P == rank).double().mean()) for rank in range(count)]
    return {"places": len(found_P), "acceptance": shares}


def planned(acceptance: Sequence[float], nodes: int, depth: int | None) -> dict[str, Any]:
    """The best tree of a size, as drafters take it."""
    paths = likeliest_tree(acceptance, nodes, depth)
    return {
        "nodes": len(paths),
        "accepted": accepted_by(acceptance, paths),
        "paths": sorted(map(list, paths), key=lambda path: (len(path), path)),
    }


if __name__ == "__main__":
    main()
