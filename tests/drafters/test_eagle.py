"""EAGLE drafts are what its published forward gives."""

from __future__ import annotations

import json

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaModel

import specdec
from drafters import EagleDrafter
from drafters.eagle import EagleHead
from specdec import Sampling, Tap
from verifiers import FullVerifier

SETTINGS = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def head(request):
    torch.manual_seed(3)
    made = EagleHead(SETTINGS, bias=request.param)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


@torch.no_grad()
def reference(head, target, row, drafted):
    """[N + 1, V] logits after a row, and after each drafted token, by a stock model around the layer."""
    stock = LlamaModel(LlamaConfig(**SETTINGS)).eval()
    stock.layers[0].load_state_dict(head.layers[0].state_dict(), strict=False)
    stock.layers[0].input_layernorm = stock.norm = torch.nn.Identity()
    states = target(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states[-1][0, :-1]
    tokens, logits = list(row[1:]), []
    for token in [*drafted, None]:
        pairs = torch.cat([target.model.embed_tokens.weight[tokens], states], -1) @ head.fc.weight.T
        pairs = pairs if head.fc.bias is None else pairs + head.fc.bias
        own = stock(inputs_embeds=pairs[None], use_cache=False).last_hidden_state[0, -1:]
        logits.append(target.lm_head(own)[0])
        if token is not None:
            tokens, states = [*tokens, token], torch.cat([states, own])
    return torch.stack(logits)


class Watched(EagleDrafter):
    """Notes the rows it was asked about, and its drafts."""

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.seen.append((context.row(0), made))
        return made


def watched(target, weights, sampling=None, **shape):
    drafter = Watched(weights, **shape)
    drafter.seen, prompt = [], random_prompt(9, 1)
    result = specdec.generate(FullVerifier(target), drafter, prompt, 20, sampling=sampling)
    assert not result.metrics.faults and len(drafter.seen) > 4
    if sampling is None:
        assert result.row() == plain_greedy(target, prompt, 20)
    return drafter.seen


def test_a_chain_and_its_laws_are_the_published_forwards(target, head):
    for row, draft in watched(target, head, Sampling(temperature=1.0), length=3):
        if draft.size == 0:  # there was room for one more token only
            continue
        expected = reference(head, target, row, draft.tokens[0].tolist())[:-1].softmax(-1)
        assert torch.allclose(draft.laws[0], expected, atol=1e-5)


def test_a_tree_follows_its_paths(target, head):
    for row, draft in watched(target, head, length=3, width=2, nodes=6):
        tokens, parents = draft.tokens[0].tolist(), draft.parents[0].tolist()
        for node, parent in enumerate(parents):
            path, at = [], parent
            while at >= 0:
                path.insert(0, tokens[at])
                at = parents[at]
            assert tokens[node] in reference(head, target, row, path)[-1].topk(2).indices


def test_a_checkpoint_in_the_authors_layout(target, head, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SETTINGS, "architectures": ["LlamaForCausalLM"]}))
    weights = {name: weight.clone() for name, weight in head.state_dict().items()}
    save_file(
        {**weights, "embed_tokens.weight": target.model.embed_tokens.weight.clone()},
        tmp_path / "model.safetensors",
    )
    expected, seen = (watched(target, made, length=3) for made in (head, tmp_path))
    assert [draft.tokens.tolist() for _, draft in seen] == [draft.tokens.tolist() for _, draft in expected]
    head.save(tmp_path / "saved")
    again = EagleHead.load(tmp_path / "saved").state_dict()
    assert again.keys() == head.state_dict().keys()
    assert all(torch.equal(weight, again[name]) for name, weight in head.state_dict().items())


def test_a_head_of_another_target_is_refused(target):
    for changes, said in (({"hidden_size": 48}, "hidden size of 48"), ({"vocab_size": 512}, "vocabulary of 512")):
        with pytest.raises(ValueError, match=said):
            specdec.generate(FullVerifier(target), EagleDrafter(EagleHead({**SETTINGS, **changes})), [1, 2], 4)


def test_losses_are_the_papers(target, head):
    row = torch.tensor([random_prompt(12, 5)])
    network = FullVerifier(target).model.network
    last = []
    hook = target.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
    with torch.no_grad():
        answer = target(row, output_hidden_states=True, use_cache=False)
        hook.remove()
        wanted = torch.zeros(1, 12, dtype=torch.bool)
        wanted[0, 4:11] = True
        losses = head.losses({Tap(4): last[0]}, row, wanted, network)
        said = torch.stack([reference(head, target, row[0, : end + 1].tolist(), [])[0] for end in range(5, 11)])
    law = answer.logits[0, 5:11].softmax(-1)
    assert losses["law"].item() == pytest.approx(
        -0.1 * (law * said.log_softmax(-1)).sum(-1).mean().item(), abs=1e-5
    )
    assert losses["state"] > 0
