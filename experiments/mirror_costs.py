"""What Qwen3-14B and 0.6B would cost in the setting of Mirror Speculative Decoding (arXiv 2510.13161).

The paper gives no times. Here a pair on two H200 was measured (conf/channel/simulated.yaml), its drafter the same,
its target Qwen3-8B. A step at batch 1 takes the time in which its weights are read, so the larger target's takes
longer in the ratio of their bytes. What branches cost is the open question: nothing while a step is bound by its
weights, and four times a chain at 64 of them where it was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.run import CONF
from specdec.planner import Acceptance, Branching, Costs, Curve, mirror, serial
from specdec.runtime.synthetic import SHAPES, Shape

WINDOW, TOP, EXIT = 7, 8, 0.5  # γ, κ, E/N of the paper
BRANCHES = (WINDOW + 1) * TOP
MEASURED, PAPER = "synthetic/qwen3-8b", "synthetic/qwen3-14b"
ASSUMPTIONS = (
    "target: steps of Qwen3-8B as measured, times the ratio of the bytes of weights; the exit's head by its share",
    "drafter: steps of Qwen3-0.6B as measured; 64 branches cost what one does (flat), or what was measured",
    "look, host and both rendezvous: as measured on two H200; the paper has eight GPUs, eight NPUs and a network",
    "streaming drafter: so many tokens a step, of the same acceptance and at the cost of a plain step",
    "agreement: such that drafting in turns with one token a step gives the published speedup of vanilla SD",
)


def weights(shape: Shape) -> int:
    """Bytes of bfloat16 weights that a step reads: all layers and the head."""
    heads = shape.num_attention_heads + shape.num_key_value_heads
    attention = 2 * shape.hidden_size * heads * shape.head_dim
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return 2 * shape.num_hidden_layers * layer + head(shape)


def head(shape: Shape) -> int:
    """Bytes of its LM head."""
    return 2 * shape.hidden_size * shape.vocab_size


def paper_costs(tokens_per_step: float, flat: bool) -> Costs:
    """The pair's costs.

    Args:
        tokens_per_step: η.
        flat: whether branches side by side cost nothing more.
    """
    known: Costs = instantiate(OmegaConf.load(CONF / "channel" / "simulated.yaml").costs, _convert_="all")
    ratio = weights(SHAPES[PAPER]) / weights(SHAPES[MEASURED])
    target = Curve("target", [(width, ms * ratio) for width, ms in known.target.points])
    return replace(
        known,
        target=target,
        drafter=Curve.flat("drafter", known.drafter(1), BRANCHES) if flat else known.drafter,
        tokens_per_step=tokens_per_step,
        exit_head=target(1) * head(SHAPES[PAPER]) / weights(SHAPES[PAPER]),
    )


def fitted(costs: Costs, speedup: float) -> float:
    """The agreement with which drafting in turns is so much faster than plain decoding.

    Raises:
        ValueError: there is none.
    """

    def reached(agreement: float) -> float:
        return costs.plain / serial(costs, Acceptance.iid(agreement), WINDOW).ms_per_token

    agreement = solved(reached, speedup)
    if agreement is None:
        raise ValueError(f"no agreement gives a speedup of {speedup} in turns: give one, or other costs")
    return agreement


def needed(costs: Costs, speedup: float, hits: float) -> float | None:
    """The agreement with which Mirror is so much faster, None where none is enough; ``hits`` is its hit rate."""

    def reached(agreement: float) -> float:
        timing = mirror(costs, Acceptance.iid(agreement), WINDOW, Branching(BRANCHES, hits, EXIT))
        return costs.plain / timing.ms_per_token

    return solved(reached, speedup)


def solved(reached: Callable[[float], float], wanted: float) -> float | None:
    """Where a rising function of an agreement reaches a value, by halving; None where it does not."""
    low, high = 0.0, 1.0
    if not reached(low) <= wanted <= reached(high):
        return None
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < wanted else (low, middle)
    return low
