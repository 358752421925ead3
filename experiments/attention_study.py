"""Which attention is fastest for a few queries over a long cache? ``python -m experiments.attention_study``.

The same tokens by our kernel, by SDPA under a mask, by FlexAttention, and by two products of matrices, each as one
launch. B = 1 row, W tokens, S slots, H key-value heads, G query heads per key-value head, E head width.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from experiments.folder import write_json
from experiments.provenance import PROJECT, device_name, revision
from experiments.stopwatch import bandwidth, middle, recorded
from specdec import tree
from specdec.runtime.loading import pick_device
from specdec.runtime.sight import Sight

HEADS, GROUPS, SIZE = 8, 4, 128  # of Qwen3-8B
CALLS = 20  # attentions in one launch, as many layers of a network


@dataclass(frozen=True)
class Case:
    """Queries, a cache, and who sees what.

    Attributes:
        query: [1, H * G, W, E].
        keys, values: [1, H, S, E].
        allowed: bool [W, S].
        sight: the same for our kernel.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    allowed: Tensor
    sight: Sight


def case(context: int, parents: Sequence[int], device: torch.device, dtype: torch.dtype) -> Case:
    """The last committed token and the nodes of a tree, behind ``context`` committed tokens."""
    nodes, slots = len(parents), -(-(context + len(parents)) // 128) * 128
    reach_NN = tree.ancestors(torch.tensor([parents], dtype=torch.int64))[0]
    allowed = torch.arange(slots).expand(nodes + 1, -1) < context
    allowed[1:, context : context + nodes] = reach_NN
    return Case(
        scattered(HEADS * GROUPS, nodes + 1).to(device, dtype),
        scattered(HEADS, slots).to(device, dtype),
        scattered(HEADS, slots).cos().to(device, dtype),
        allowed.to(device),
        sight_of(context, parents, reach_NN, device),
    )


def scattered(heads: int, length: int) -> Tensor:
    """[1, heads, length, E]: numbers without a pattern."""
    digits = torch.arange(heads * length * SIZE, dtype=torch.float64).sin() * 1e4 % 1
    return (digits - 0.5).float().reshape(1, heads, length, SIZE)


def sight_of(context: int, parents: Sequence[int], reach_NN: Tensor, device: torch.device) -> Sight:
    """What the tokens see, in the words of our kernel."""
    nodes = len(parents)
    counts_1W = torch.cat([torch.tensor([context]), context + reach_NN.sum(1)])[None].to(device)
    order = None
    if list(parents) != list(range(-1, nodes - 1)):
        path_NN = torch.where(reach_NN, torch.arange(nodes), nodes).sort(1).values % nodes
        order = torch.cat([torch.zeros_like(path_NN[:1]), path_NN])[None].to(device)
    return Sight(torch.tensor([context], device=device), counts_1W, torch.zeros_like(counts_1W), order)


def ours(what: Case) -> Callable[[], Tensor]:
    """The kernel of the runtime, in the order of positions."""
    from specdec.kernels.attention import attend

    q_WX = what.query[0].transpose(0, 1).reshape(what.query.shape[2], -1)
    return lambda: by_heads(attend(q_WX, what.keys, what.values, what.sight, SIZE**-0.5, overlap=True), what)


def by_heads(out_WX: Tensor, what: Case) -> Tensor:
    """[1, H * G, W, E]."""
    return out_WX.reshape(what.query.shape[2], -1, SIZE).transpose(0, 1)[None]


def masked(what: Case) -> Callable[[], Tensor]:
    """SDPA under a mask, query heads that share a key-value head end to end."""
    packed = what.query.reshape(1, HEADS, -1, SIZE)
    mask = what.allowed.repeat(GROUPS, 1)[None, None]
    return lambda: scaled_dot_product_attention(packed, what.keys, what.values, mask).reshape(what.query.shape)


def products(what: Case) -> Callable[[], Tensor]:
    """Two products of matrices and a softmax between them."""
    packed = what.query.reshape(HEADS, -1, SIZE)
    hidden = torch.where(what.allowed, 0.0, -torch.inf).repeat(GROUPS, 1).to(packed.dtype)

    def run() -> Tensor:
        scores = torch.baddbmm(hidden, packed, what.keys[0].transpose(1, 2), alpha=SIZE**-0.5)
        return torch.bmm(scores.softmax(-1), what.values[0]).reshape(what.query.shape)

    return run


def flexible(what: Case) -> Callable[[], Tensor]:
    """FlexAttention, compiled on a GPU; its kernel for few queries splits the keys."""
    device, allowed = what.query.device, what.allowed
    attend = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention
    width, slots = allowed.shape

    def seen(b: Tensor, h: Tensor, w: Tensor, s: Tensor) -> Tensor:
        return allowed[w, s]

    blocks = create_block_mask(seen, None, None, width, slots, device=device)
    return lambda: attend(what.query, what.keys, what.values, block_mask=blocks, enable_gqa=True)


WAYS = {"ours": ours, "sdpa": masked, "products": products, "flex": flexible}


def measure(what: Case, way: Callable[[Case], Callable[[], Tensor]]) -> float:
    """Seconds of one attention."""
    call, device = way(what), what.query.device

    def several() -> None:
        for _ in range(CALLS):
            call()

    return middle(device, recorded(device, several)) / CALLS


def study(contexts: Sequence[int], device: torch.device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Microseconds of every way at every context, for one token, a chain of eight and a tree of eight."""
    rate = bandwidth(device).best
    drafts = {"one token": [], "chain of 8": list(range(-1, 6)), "tree of 8": [-1, -1, 0, 0, 1, 2, 2]}
    found = []
    for context in contexts:
        for name, parents in drafts.items():
            what, taken = case(context, parents, device, dtype), dict[str, float | str]()
            for title, way in WAYS.items():
                try:
                    taken[title] = 1e6 * measure(what, way)
                except Exception as error:  # a way that this device or version does not know
                    taken[title] = f"{type(error).__name__}: {error}".split("\n")[0]
            floor = 1e6 * 2 * context * HEADS * SIZE * what.keys.element_size() / rate
            found.append({"context": context, "draft": name, "floor_us": floor, "us": taken})
            print(json.dumps(found[-1]), flush=True)
    return found


@torch.inference_mode()
def main() -> None:
    """Print a line per context and draft, and write all to a file."""
    parser = argparse.ArgumentParser("python -m experiments.attention_study", description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096, 16384, 32768])
    parser.add_argument("--out", help="JSON file to write")
    chosen = parser.parse_args()
    device = pick_device("auto")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found = study(chosen.contexts, device, dtype)
    if chosen.out:
        write_json(
            Path(chosen.out),
            {
                "command": shlex.join(["python", "-m", "experiments.attention_study", *sys.argv[1:]]),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "git": revision(PROJECT),
                "torch": torch.__version__,
                "device": device_name(device),
                "dtype": str(dtype),
                "bandwidth": asdict(bandwidth(device)),
                "cases": found,
            },
        )


if __name__ == "__main__":
    main()
