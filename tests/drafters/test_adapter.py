"""An early exit's adapter drafts what its published forward gives, and learns what the target says."""

from __future__ import annotations

import json

import pytest
import torch
from families import FAMILIES, llama, plain_greedy, random_prompt
from published import attended, heads, jittered, normed, rotated, triangle
from safetensors.torch import load_file, save_file

import specdec
from drafters import AdapterDrafter, EarlyExitDrafter
from drafters.adapter_head import AdapterHead
from drafters.trainable import FrozenTarget
from specdec import Sampling, Tap
from specdec.channel import Inline, Thread
from specdec.forecast import DraftTopK
from specdec.runtime.huggingface import Network
from verifiers import FullVerifier

EXIT = 2
SETTINGS = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "exit_layer": EXIT,
}


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(3)
    return jittered(AdapterHead(SETTINGS))


def published(head, target, tokens):
    """[S, V] logits over a whole text, without a cache."""
    part = {name.removeprefix("layers.0."): weight for name, weight in head.named_parameters()}
    with torch.no_grad():
        states = target(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states[EXIT][0]
    inner, place = normed(states, part["input_layernorm.weight"]), torch.arange(len(tokens))
    q, k, v = (heads(inner, part[f"self_attn.{side}_proj.weight"], 8) for side in "qkv")
    mixed = attended(rotated(q, place), rotated(k, place), v, triangle(len(tokens)))
    own = normed(states + mixed @ part["self_attn.o_proj.weight"].T, part["norm.weight"])
    return own @ target.lm_head.weight.T


class Watched(AdapterDrafter):
    """Notes the rows it was asked about, and its drafts."""

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.seen.append((context.row(0), made))
        return made


def watched(target, weights, prompt, new=20, sampling=None, **shape):
    drafter = Watched(weights, **shape)
    drafter.seen = []
    result = specdec.generate(FullVerifier(target), drafter, prompt, new, sampling=sampling)
    assert not result.metrics.faults
    return result, drafter.seen


@pytest.mark.parametrize("length", [1, 4])
def test_a_chain_is_the_published_forward(target, head, length):
    prompt = random_prompt(9, 1)
    result, seen = watched(target, head, prompt, length=length)
    assert result.row() == plain_greedy(target, prompt, 20) and len(seen) > 3
    for row, draft in seen:
        tokens = draft.tokens[0].tolist()
        expected = published(head, target, [*row, *tokens])[len(row) - 1 :].argmax(-1)
        assert expected[: len(tokens)].tolist() == tokens


def test_laws_are_the_published_forward(target, head):
    _, seen = watched(target, head, random_prompt(7, 2), sampling=Sampling(temperature=1.0), length=3)
    for row, draft in seen:
        if draft.size:
            logits = published(head, target, [*row, *draft.tokens[0].tolist()])[len(row) - 1 : -1]
            assert torch.allclose(draft.laws[0], logits.softmax(-1), atol=1e-5)


def test_a_tree_follows_its_paths(target, head):
    prompt = random_prompt(8, 3)
    result, seen = watched(target, head, prompt, length=3, width=2)
    assert result.row() == plain_greedy(target, prompt, 20)
    for row, draft in seen:
        tokens, parents = draft.tokens[0].tolist(), draft.parents[0].tolist()
        for node, parent in enumerate(parents):
            path, at = [], parent
            while at >= 0:
                path.insert(0, tokens[at])
                at = parents[at]
            assert tokens[node] in published(head, target, [*row, *path])[-1].topk(2).indices.tolist()


def test_rows_of_a_batch_do_not_touch_each_other(target, head):
    prompts = [random_prompt(9, 1), random_prompt(1, 2), random_prompt(5, 3)]
    together = specdec.generate(FullVerifier(target), AdapterDrafter(head, length=3, width=2), prompts, 16)
    for index, prompt in enumerate(prompts):
        alone = specdec.generate(FullVerifier(target), AdapterDrafter(head, length=3, width=2), prompt, 16)
        assert together.row(index) == alone.row() == plain_greedy(target, prompt, 16)
        rounds = [(e.accepted, e.committed) for e in together.trace.rounds if e.row == index]
        assert rounds == [(e.accepted, e.committed) for e in alone.trace.rounds]


@pytest.mark.parametrize("channel", [Inline(), Thread()], ids=lambda part: type(part).__name__)
def test_it_prepares_for_outcomes_in_the_pipelined_loop(target, head, channel):
    prompt = random_prompt(9, 1)
    options = {"forecast": DraftTopK(2), "channel": channel}
    result = specdec.generate(FullVerifier(target), AdapterDrafter(head, length=3), prompt, 20, **options)
    assert result.row() == plain_greedy(target, prompt, 20) and not result.metrics.faults
    in_turns = specdec.generate(FullVerifier(target), AdapterDrafter(head, length=3), prompt, 20)
    assert [e.accepted for e in result.trace.rounds] == [e.accepted for e in in_turns.trace.rounds]


@pytest.mark.parametrize("family", ["gpt2", "gemma3-hybrid", "qwen3"])
def test_a_fresh_adapter_fits_other_families(family):
    model, prompt = FAMILIES[family](), random_prompt(9, 1)
    drafter = AdapterDrafter(AdapterHead.fresh(FrozenTarget(Network(model)), EXIT), length=3)
    result = specdec.generate(FullVerifier(model), drafter, prompt, 16)
    assert result.row() == plain_greedy(model, prompt, 16) and not result.metrics.faults


def test_a_fresh_adapter_is_the_raw_exit(target):
    prompt = random_prompt(9, 1)
    fresh = AdapterDrafter(AdapterHead.fresh(FrozenTarget(Network(target)), EXIT), length=3)
    raw = EarlyExitDrafter(EXIT, length=3)
    rounds = [specdec.generate(FullVerifier(target), which, prompt, 24).trace.rounds for which in (fresh, raw)]
    assert [entry.accepted for entry in rounds[0]] == [entry.accepted for entry in rounds[1]]


@torch.no_grad()
def states_of(target, tokens_BS):
    """Behind the exit and behind the last layer, before the final norm."""
    last = []
    hook = target.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
    states = target(tokens_BS, output_hidden_states=True, use_cache=False).hidden_states
    hook.remove()
    return {Tap(EXIT): states[EXIT], Tap(4): last[0]}


def test_the_loss_is_the_cross_entropy_of_the_two_laws(target, head):
    rows = [random_prompt(8, 1), random_prompt(8, 2)]
    tokens_BS, wanted_BS = torch.tensor(rows), torch.arange(16).reshape(2, 8) % 3 == 0
    states = states_of(target, tokens_BS)
    loss = head.losses(states, tokens_BS, wanted_BS, FrozenTarget(Network(target)))
    law = torch.stack([target(torch.tensor([row])).logits[0].softmax(-1) for row in rows])
    own = torch.stack([published(head, target, row).log_softmax(-1) for row in rows])
    assert loss.keys() == {"law"}
    torch.testing.assert_close(loss["law"], -(law * own).sum(-1)[wanted_BS].mean())


def test_training_lowers_the_loss_and_leaves_the_target_alone(target):
    network = FrozenTarget(Network(target))
    head = AdapterHead.fresh(network, EXIT)
    tokens_BS = torch.tensor([random_prompt(24, seed) for seed in range(8)])
    states, wanted_BS = states_of(target, tokens_BS), torch.ones_like(tokens_BS, dtype=torch.bool)
    before = {name: weight.clone() for name, weight in target.named_parameters()}
    optimizer, losses = torch.optim.Adam(head.parameters(), 3e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(head.losses(states, tokens_BS, wanted_BS, network)["law"])
        losses[-1].backward()
        optimizer.step()
    target.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in target.named_parameters())


def test_a_checkpoint_is_read_as_published_and_written_back(target, head, tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "exit_layer"}  # Kangaroo's do not say
    (tmp_path / "config.json").write_text(json.dumps(settings))
    names = {f"layers.0.self_attn.{side}_proj.weight" for side in "qkvo"}
    names |= {"layers.0.input_layernorm.weight", "norm.weight"}
    assert head.state_dict().keys() == names
    save_file(head.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="exit_layer of an adapter"):
        AdapterDrafter(tmp_path)
    AdapterHead.load(tmp_path, EXIT).save(tmp_path / "again")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == names and all(torch.equal(found[name], head.state_dict()[name]) for name in names)
    prompt = random_prompt(9, 1)
    drafts = [watched(target, weights, prompt)[1] for weights in (head, tmp_path / "again")]
    assert all(torch.equal(one[1].tokens, other[1].tokens) for one, other in zip(*drafts, strict=True))
    save_file({**head.state_dict(), "layers.0.mlp.odd": torch.ones(1)}, tmp_path / "again" / "model.safetensors")
    with pytest.raises(ValueError, match=r"belong nowhere .layers.0.mlp.odd"):
        AdapterDrafter(tmp_path / "again")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_size": 48}, "hidden size of 48, but this one has 32"),
        ({"vocab_size": 512}, "vocabulary of 512, but this one has 128"),
        ({"exit_layer": 4}, "from 1 to 3 for this model, not 4"),
    ],
)
def test_an_adapter_of_another_target_is_refused(target, settings, said):
    drafter = AdapterDrafter(AdapterHead({**SETTINGS, **settings}))
    with pytest.raises(ValueError, match=said):
        specdec.generate(FullVerifier(target), drafter, [1, 2], 4)
