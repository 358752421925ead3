"""Drafts of heads on a real network's states give exactly the target's law, under every lossless rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from exhaustive import Distribution, distribution, total_variation
from families import FAMILIES, plain_logits
from torch import Tensor, nn

from drafters import HydraDrafter, MedusaDrafter, ReDrafter
from drafters.checkpoint import fill
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.redrafter import RecurrentHead
from specdec import Block, Coupled, Draft, Match, Ratio, Sampling
from verifiers import FullVerifier

X, PROMPT, NEW = 8, [0, 1, 1, 0, 1], 4
WARM = Sampling(temperature=1.0)


@cache
def target(vocabulary: int) -> FullVerifier:
    """A network all of whose numbers are float64: rounding is far below what a wrong law does."""
    sizes = {"vocab_size": vocabulary, "hidden_size": X, "num_hidden_layers": 1, "num_attention_heads": 2}
    return FullVerifier(FAMILIES["gpt2"](**sizes, max_position_embeddings=16).double())


def filled(heads: nn.Module) -> nn.Module:
    """Heads with random weights, large enough that their laws are neither flat nor certain."""
    generator = torch.Generator().manual_seed(7)

    def give(name: str, shape: tuple[int, ...]) -> Tensor:
        return 0.9 * torch.randn(shape, generator=generator, dtype=torch.float64)

    fill(heads, give)
    return heads


DRAFTS: dict[str, Callable[[int], object]] = {
    "medusa chain": lambda v: MedusaDrafter(filled(MedusaHeads(X, v, heads=2))),
    "medusa tree": lambda v: MedusaDrafter(filled(MedusaHeads(X, v, heads=2)), width=2, nodes=4),
    "medusa static tree": lambda v: MedusaDrafter(filled(MedusaHeads(X, v, heads=2)), tree=[[0], [1], [0, 0]]),
    "medusa, shared head": lambda v: MedusaDrafter(filled(MedusaHeads(X, v, heads=2, shared_head=True))),
    "hydra chain": lambda v: HydraDrafter(filled(HydraHeads(X, v, heads=2))),
    "hydra tree": lambda v: HydraDrafter(filled(HydraHeads(X, v, heads=2)), width=2, nodes=4),
    "redrafter chain": lambda v: ReDrafter(filled(RecurrentHead(X, v, 6)), length=2),
    "redrafter beams": lambda v: ReDrafter(filled(RecurrentHead(X, v, 6)), length=2, width=2, nodes=5),
}
CHAINS = ["medusa chain", "hydra chain", "redrafter chain"]
# Match and Coupled draw at every node and read no law: a smaller vocabulary is all that can be gone through.
RULES = [(Ratio(), 3), (Block(), 3), (Match(), 2), (Coupled(), 2)]


@cache
def expected(vocabulary: int, sampling: Sampling) -> Distribution:
    """The law of plain decoding, by the chain rule and forwards without a cache."""
    law: Distribution = {(): 1.0}
    for _ in range(NEW):
        longer: Distribution = {}
        for tokens, weight in law.items():
            logits_V = plain_logits(target(vocabulary).model.network.module, [*PROMPT, *tokens])[-1]
            for token, chance in enumerate(sampling.law(logits_V).tolist()):
                if chance > 0:
                    longer[*tokens, token] = weight * chance
        law = longer
    return law


def distance(
    make_drafter: Callable[[int], object], rule: object, vocabulary: int = 3, sampling: Sampling = WARM
) -> float:
    got = distribution(lambda: make_drafter(vocabulary), target(vocabulary), rule, PROMPT, NEW, sampling)
    assert sum(got.values()) == pytest.approx(1, abs=1e-12), "the enumeration is not complete"
    return total_variation(got, expected(vocabulary, sampling))


@pytest.mark.parametrize(("rule", "vocabulary"), RULES, ids=repr)
@pytest.mark.parametrize("name", DRAFTS)
def test_reproduces_the_targets_law(name: str, rule: object, vocabulary: int) -> None:
    assert distance(DRAFTS[name], rule, vocabulary) < 1e-12


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=2)], ids=repr)
@pytest.mark.parametrize("name", CHAINS)
def test_reproduces_the_law_under_other_samplings(name: str, sampling: Sampling) -> None:
    assert distance(DRAFTS[name], Ratio(), sampling=sampling) < 1e-12


class Altered:
    """A drafter whose draft is changed before it goes out."""

    def __init__(self, inner: object, change: Callable[[Draft], Draft]) -> None:
        self.inner, self.change = inner, change

    @property
    def wants(self) -> object:
        return self.inner.wants  # type: ignore[attr-defined]

    def begin(self, *what: object) -> None:
        self.inner.begin(*what)  # type: ignore[attr-defined]

    def draft(self, *what: object) -> Draft:
        draft = self.inner.draft(*what)  # type: ignore[attr-defined]
        return self.change(draft) if draft.size else draft


def law_of_another_head(draft: Draft) -> Draft:
    return draft if draft.laws is None else replace(draft, laws=draft.laws.roll(1, 1))


def argmax_with_soft_law(draft: Draft) -> Draft:
    return draft if draft.laws is None else replace(draft, tokens=draft.laws.argmax(-1))


FAULTS = [(name, argmax_with_soft_law) for name in CHAINS] + [(name, law_of_another_head) for name in CHAINS[:2]]


@pytest.mark.parametrize("rule", [Ratio(), Block()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_planted_faults_are_caught(name: str, fault: Callable[[Draft], Draft], rule: object) -> None:
    assert distance(lambda v: Altered(DRAFTS[name](v), fault), rule) > 0.01
