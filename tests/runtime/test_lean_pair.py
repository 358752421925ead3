"""An EAGLE-3 layer in fused kernels makes what its modules make; on a CPU their references stand in for them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from families import llama, random_prompt
from torch import nn

import specdec
from drafters import Eagle3Drafter, StreamDrafter
from drafters.eagle3_head import Eagle3Head
from drafters.stream_head import StreamHead
from specdec import Sampling
from specdec.runtime.held import rebuild
from specdec.runtime.replay import Recording, Replay
from verifiers import FullVerifier

pytest.importorskip("triton")

from specdec.runtime import pair
from specdec.runtime.fuse import packed
from specdec.runtime.likeness import REFERENCE

KNOWN = torch.tensor([5, 90, 17, 2, 64, 33, 120, 8])
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}


class Again(Recording):
    """Stands in for a CUDA graph: calls the part, whose shapes do not depend on the rows."""

    def __init__(self, part, shape, leaves):
        self._part, self._shape = part, shape

    def __call__(self, leaves):
        return self._part(*rebuild(self._shape, iter(leaves)))


def replayed():
    verifier = FullVerifier(llama())
    verifier.replay = Replay(Again)
    return verifier


@pytest.fixture
def target():
    """A target whose layers run in kernels that a CPU has too."""
    verifier = replayed()
    network = verifier.model.network
    network.lean = replace(packed(network.module, network.config), kernels=REFERENCE, overlap=False)
    network.brief = True
    return verifier


@pytest.fixture
def head():
    torch.manual_seed(3)
    made = Eagle3Head(SIZES, 32, KNOWN, (1, 2, 3))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def test_the_layer_is_that_of_the_modules(target, head):
    before = {name: weight.data_ptr() for name, weight in head.state_dict().items()}
    made = head.fused(target.model.network)
    assert made is not None
    assert pair.distance(made.pair, head.midlayer, head.norm, head.lm_head, head.rotary) < 1e-5
    assert all(weight.data_ptr() == before[name] for name, weight in head.state_dict().items()), "it is as it was"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_differs_is_not_fused(target, head, dtype, caplog):
    network, lean = target.model.network, target.model.network.lean
    head.to(dtype).midlayer.norm_before_residual = True
    assert head.fused(network) is None
    head.midlayer.norm_before_residual = False
    assert head.fused(network) is not None
    plain, wide = head.midlayer.mlp.act_fn, nn.Linear(32, 48, dtype=dtype)
    for other in (nn.ReLU(), nn.GELU()):
        head.midlayer.mlp.act_fn = other
        assert head.fused(network) is None and "in float32" in caplog.text
        caplog.clear()
    head.midlayer.mlp.act_fn = plain
    head.midlayer.mlp.gate_proj = wide
    assert head.fused(network) is None and "in float32" in caplog.text
    head.midlayer.mlp.gate_proj = nn.Linear(32, 48, bias=False, dtype=dtype)
    network.lean = replace(lean, kernels=replace(REFERENCE, attend=lambda *what, overlap: 1 / 0))
    assert head.fused(network) is None and "division by zero" in caplog.text
    network.lean = None
    assert head.fused(network) is None


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7)], ids=["greedy", "warm"])
@pytest.mark.parametrize(
    "make",
    [
        lambda head: Eagle3Drafter(head, length=4),
        lambda head: Eagle3Drafter(head, length=3, width=2, nodes=6),
        lambda head: StreamDrafter(StreamHead.on(head, 2), length=5, steps=3, candidates=2),
    ],
    ids=["chain", "tree", "streams"],
)
def test_rounds_are_those_without_it(target, head, make, sampling, monkeypatch):
    ran = []
    over = pair.LeanPair.over
    monkeypatch.setattr(pair.LeanPair, "over", lambda *what: ran.append(what) or over(*what))
    plain, drafters = replayed(), [make(head), make(head)]
    for seed in range(2):
        prompt = random_prompt(7 + seed, seed)
        expected, found = (
            specdec.generate(verifier, drafter, prompt, 24, sampling=sampling, seed=seed)
            for verifier, drafter in zip((plain, target), drafters, strict=True)
        )
        assert torch.equal(found.tokens, expected.tokens) and not found.metrics.faults
        assert found.metrics.drafted_tokens == expected.metrics.drafted_tokens > 0
        rounds = [[(e.accepted, e.committed) for e in result.trace.rounds] for result in (found, expected)]
        assert rounds[0] == rounds[1]
    assert len(ran) > 4, "the proofs are two, and it drafts besides"
    assert not any(weight.is_inference() for weight in head.parameters()), "it can go on learning"


def in_inference_mode(head):
    with torch.inference_mode():
        return copy.deepcopy(head)


@pytest.mark.parametrize(
    "given", [lambda head: head.to(torch.bfloat16), in_inference_mode], ids=["copied", "inference"]
)
def test_heads_that_are_copied_or_cannot_learn_draft_too(target, head, given):
    drafter = Eagle3Drafter(given(head), length=3)
    result = specdec.generate(target, drafter, random_prompt(7, 1), 16)
    assert drafter.model.network.fused is not None
    assert result.metrics.drafted_tokens > 16 and not result.metrics.faults
