"""What must not change with the device. Without a GPU there is nothing to compare."""

from __future__ import annotations

import copy

import pytest
import torch
from families import FAMILIES

import specdec
from drafters import AdapterDrafter, Eagle3Drafter, EarlyExitDrafter, ModelDrafter, NgramDrafter, NullDrafter
from drafters.adapter_head import AdapterHead
from drafters.eagle3_head import Eagle3Head
from specdec import Coupled, Ratio, Sampling
from specdec.noise import Lane, Noise
from verifiers import FullVerifier

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROWS = [[1, 2, 3, 1, 2], [9], [4] * 11]


def test_noise_is_the_same_integers():
    place = torch.arange(300).expand(3, -1)
    for lane in Lane:
        words = [
            Noise(2**40 + 5, torch.arange(3, device=device), 300)
            .words(place.to(device), lane, torch.arange(2, device=device))
            .cpu()
            for device in ("cpu", "cuda")
        ]
        assert torch.equal(*words)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rule", [Ratio(), Coupled()], ids=lambda rule: type(rule).__name__)
def test_tokens_do_not_depend_on_the_device(tiny_llama, sampling, rule):
    # In float64, so that no rounding difference reaches a decision.
    tokens = []
    for device in ("cpu", "cuda"):
        target = copy.deepcopy(tiny_llama).double().to(device)
        verifier = FullVerifier(target)
        for drafter in (
            NullDrafter(),
            NgramDrafter(),
            ModelDrafter(target, length=3),
            EarlyExitDrafter(width=2),
        ):
            result = specdec.generate(
                verifier, drafter, ROWS, max_new_tokens=40, sampling=sampling, acceptance=rule, seed=4
            )
            assert not result.metrics.faults
            tokens.append(result.tokens.cpu())
    half = len(tokens) // 2
    for here, there in zip(tokens[:half], tokens[half:], strict=True):
        assert torch.equal(here, there)


def test_at_a_fixed_width_bfloat16_gives_the_tokens_of_plain_decoding(tiny_llama):
    target = copy.deepcopy(tiny_llama).bfloat16().cuda()
    drafters = [
        NgramDrafter(length=6),
        ModelDrafter(target, length=3),
        ModelDrafter(target, length=3, width=2),
        EarlyExitDrafter(exit_layer=1, width=2, nodes=9),
    ]
    verifier = FullVerifier(target, width=1 + max(drafter.size for drafter in drafters))
    for rows in (ROWS, ROWS[::-1]):
        plain = specdec.generate(verifier, NullDrafter(), rows, max_new_tokens=200)
        for drafter in drafters:
            result = specdec.generate(verifier, drafter, rows, max_new_tokens=200)
            assert not result.metrics.faults
            assert torch.equal(result.tokens, plain.tokens)


@pytest.mark.parametrize("kind", FAMILIES)
def test_replayed_rounds_of_every_family_give_the_tokens_of_the_cpu(kind):
    here, there = FAMILIES[kind](), FAMILIES[kind]().cuda()
    expected = specdec.generate(FullVerifier(here), NullDrafter(), ROWS, max_new_tokens=40)
    verifier = FullVerifier(there, runtime="graphed")
    for drafter in (NullDrafter(), ModelDrafter(there, length=3), EarlyExitDrafter(width=2, nodes=6)):
        result = specdec.generate(verifier, drafter, ROWS, max_new_tokens=40)
        assert not result.metrics.faults
        assert torch.equal(result.tokens.cpu(), expected.tokens)


@pytest.mark.parametrize("shape", [{"length": 4}, {"length": 3, "width": 2, "nodes": 6}], ids=["chain", "tree"])
def test_an_eagle3_head_in_fused_kernels_drafts_what_its_modules_do(tiny_llama, shape):
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 97}
    head, rounds = Eagle3Head(sizes, 32, layers=(1, 2, 3)), []
    for device, runtime in (("cpu", "eager"), ("cuda", "graphed")):
        target = FullVerifier(copy.deepcopy(tiny_llama).to(device), runtime=runtime)
        drafter = Eagle3Drafter(copy.deepcopy(head), **shape)
        result = specdec.generate(target, drafter, ROWS, max_new_tokens=40)
        assert not result.metrics.faults
        rounds.append([(entry.row, entry.accepted, entry.committed) for entry in result.trace.rounds])
    assert rounds[0] == rounds[1] and drafter.model.network.fused is not None


def test_a_layer_that_a_drafter_adds_to_the_cache_leaves_what_was_recorded_alone(tiny_llama):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "vocab_size": 97,
        "exit_layer": 1,
    }
    torch.manual_seed(3)
    tree = EarlyExitDrafter(exit_layer=1, width=2, nodes=9)
    adapter = AdapterDrafter(AdapterHead({**sizes, "exit_layer": 1}), length=3, width=2, nodes=5)
    target = FullVerifier(copy.deepcopy(tiny_llama).cuda(), runtime="graphed")
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), ROWS, max_new_tokens=40)
    for drafter in 2 * [tree, adapter, tree, adapter]:
        result = specdec.generate(target, drafter, ROWS, max_new_tokens=40)
        assert not result.metrics.faults
        assert torch.equal(result.tokens.cpu(), expected.tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gemma3-hybrid", "gpt2"])
def test_half_precision_runs_without_a_fault(kind, dtype):
    target = FAMILIES[kind]().to("cuda", dtype)
    for drafter in (NullDrafter(), ModelDrafter(target, length=3)):
        result = specdec.generate(FullVerifier(target, runtime="graphed"), drafter, ROWS, max_new_tokens=30)
        assert not result.metrics.faults and result.lengths.tolist() == [30] * len(ROWS)
