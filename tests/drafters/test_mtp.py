"""MTP drafts are what the published forward gives, in every layout that checkpoints have."""

from __future__ import annotations

import json

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from published import attended, heads, jittered, mlp, normed, rotated, triangle
from safetensors.torch import load_file, save_file

import specdec
from drafters import MTPDrafter
from drafters.mtp import MTPHead
from drafters.mtp_layouts import DEEPSEEK, MIMO, QWEN
from specdec import Sampling
from verifiers import FullVerifier

SETTINGS = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
# Names in a checkpoint: of all, then of the embedding's norm, the state's, the projection, the layer and the norm.
PREFIXES = {"qwen": "mtp", "deepseek": "model.layers.4", "mimo": "model.mtp_layers.0"}
PARTS = {
    "qwen": ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "layers.0", "norm"),
    "deepseek": ("enorm", "hnorm", "eh_proj", "", "shared_head.norm"),
    "mimo": ("token_layernorm", "hidden_layernorm", "input_proj", "", "final_layernorm"),
}
NAMES = {kind: [f"{PREFIXES[kind]}.{part}".removesuffix(".") for part in parts] for kind, parts in PARTS.items()}
MADE = {
    "qwen": (QWEN, True, ()),
    "deepseek": (DEEPSEEK, False, ()),
    "mimo": (MIMO, False, ("q_proj", "k_proj", "v_proj")),
}


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module", params=NAMES)
def published(request, tmp_path_factory):
    """Kind and directory of a target's checkpoint with an MTP module, in two files."""
    torch.manual_seed(3)
    head, directory = jittered(MTPHead(SETTINGS, *MADE[request.param])), tmp_path_factory.mktemp(request.param)
    head.save(directory)
    found = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    others = {"model.layers.3.mlp.gate_proj.weight": torch.ones(2), "lm_head.weight": torch.ones(2)}
    if request.param == "deepseek":
        others["model.layers.4.shared_head.head.weight"] = torch.ones(2)
    save_file(found, directory / "b.safetensors")
    save_file(others, directory / "a.safetensors")
    placed = {**dict.fromkeys(found, "b.safetensors"), **dict.fromkeys(others, "a.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return request.param, directory


@torch.no_grad()
def layer(part, prefix, x_SX):
    inner, size = normed(x_SX, part[f"{prefix}.input_layernorm.weight"]), 8
    attention = f"{prefix}.self_attn"
    q, k, v = (
        heads(inner, part[f"{attention}.{side}_proj.weight"], size, part.get(f"{attention}.{side}_proj.bias"))
        for side in "qkv"
    )
    if f"{attention}.q_norm.weight" in part:
        q, k = normed(q, part[f"{attention}.q_norm.weight"]), normed(k, part[f"{attention}.k_norm.weight"])
    place = torch.arange(len(x_SX))
    mixed = attended(rotated(q, place), rotated(k, place), v, triangle(len(x_SX)))
    x_SX = x_SX + mixed @ part[f"{attention}.o_proj.weight"].T
    return x_SX + mlp(normed(x_SX, part[f"{prefix}.post_attention_layernorm.weight"]), part, f"{prefix}.mlp.")


@torch.no_grad()
def reference(published, target, row, drafted):
    """[N, V] logits after a row, and after each of some drafted tokens but the last."""
    kind, directory = published
    embedding_norm, state_norm, project, prefix, norm = NAMES[kind]
    part = load_file(directory / "b.safetensors")
    # Hugging Face's last state is the one behind the final norm.
    states = target(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states[-1][0, :-1]
    tokens, logits = list(row[1:]), []
    for token in drafted:
        embedded = target.get_input_embeddings()(torch.tensor(tokens))
        pair = [normed(embedded, part[f"{embedding_norm}.weight"]), normed(states, part[f"{state_norm}.weight"])]
        joined = torch.cat(pair[::-1] if kind == "mimo" else pair, -1) @ part[f"{project}.weight"].T
        own = layer(part, prefix, joined)[-1:]
        after = normed(own, part[f"{norm}.weight"])
        logits.append(target.lm_head(after)[0])
        tokens, states = [*tokens, token], torch.cat([states, own if kind == "deepseek" else after])
    return torch.stack(logits)


class Watched(MTPDrafter):
    """Notes the rows it was asked about, and its drafts."""

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.seen.append((context.row(0), made))
        return made


def watched(target, weights, prompt, new=16, sampling=None, **shape):
    drafter = Watched(weights, **shape)
    drafter.seen = []
    result = specdec.generate(FullVerifier(target), drafter, prompt, new, sampling=sampling)
    assert not result.metrics.faults
    return result, drafter.seen


@pytest.mark.parametrize("length", [1, 3])
def test_a_chain_is_the_published_forwards(target, published, length):
    prompt = random_prompt(9, 1)
    result, seen = watched(target, published[1], prompt, length=length)
    assert result.row() == plain_greedy(target, prompt, 16) and len(seen) > 3
    for row, draft in seen:
        tokens = draft.tokens[0].tolist()
        if tokens:
            assert reference(published, target, row, tokens).argmax(-1).tolist() == tokens


def test_laws_are_the_published_forwards(target, published):
    _, seen = watched(target, published[1], random_prompt(7, 2), sampling=Sampling(temperature=1.0), length=3)
    for row, draft in seen:
        if draft.size:
            expected = reference(published, target, row, draft.tokens[0].tolist()).softmax(-1)
            assert torch.allclose(draft.laws[0], expected, atol=1e-5)


def test_a_tree_keeps_the_output(target, published):
    prompt = random_prompt(8, 3)
    result, seen = watched(target, published[1], prompt, length=2, width=2)
    assert result.row() == plain_greedy(target, prompt, 16)
    for row, draft in seen:
        if draft.size >= 2:
            best = reference(published, target, row, [0])[0].topk(2).indices.tolist()
            assert draft.tokens[0, :2].tolist() == best


def test_what_is_read_is_written_back(published, tmp_path):
    kind, directory = published
    MTPHead.load(directory).save(tmp_path)
    found, again = load_file(directory / "b.safetensors"), load_file(tmp_path / "model.safetensors")
    assert found.keys() == again.keys() and all(torch.equal(found[name], again[name]) for name in found)
    parts = {name.removesuffix(".weight") for name in found}
    assert {part for index, part in enumerate(NAMES[kind]) if index != 3} <= parts


def test_the_targets_own_directory_is_found(target, published, monkeypatch):
    prompt = random_prompt(9, 1)
    with pytest.raises(ValueError, match="nobody knows the directory"):
        watched(target, None, prompt)
    monkeypatch.setattr(target.config, "_name_or_path", str(published[1]))
    drafts = [watched(target, weights, prompt)[1] for weights in (None, published[1])]
    assert all(torch.equal(one[1].tokens, other[1].tokens) for one, other in zip(*drafts, strict=True))


def changed(tmp_path, change, layout=QWEN, **settings):
    """A checkpoint in which something was changed."""
    MTPHead({**SETTINGS, **settings}, layout).save(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    change(found)
    save_file(found, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        (QWEN, "mtp.layers.0.mlp.experts.0.gate_proj.weight"),
        (QWEN, "mtp.layers.0.linear_attn.in_proj_qkvz.weight"),
        (DEEPSEEK, "model.layers.4.self_attn.kv_a_proj_with_mqa.weight"),
        (DEEPSEEK, "model.layers.4.eh_proj.weight_scale_inv"),
    ],
)
def test_layers_of_another_kind_are_refused_by_name(tmp_path, layout, name):
    directory = changed(tmp_path, lambda found: found.update({name: torch.ones(2)}), layout)
    with pytest.raises(ValueError, match=f"not supported: it has {name}"):
        MTPDrafter(directory)


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (dict.clear, {}, "holds no MTP module"),
        (lambda found: found.pop("mtp.norm.weight"), {}, "lacks mtp.norm.weight"),
        (lambda found: found.update({"mtp.fc.weight": torch.ones(2)}), {}, r"mtp.fc.weight .* \[32, 64\]"),
        (lambda found: None, {"attn_output_gate": True}, "attn_output_gate"),
        (lambda found: None, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_a_checkpoint_that_does_not_add_up_is_refused(tmp_path, change, settings, said):
    with pytest.raises(ValueError, match=said):
        MTPDrafter(changed(tmp_path, change, **settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_size": 48}, "hidden size of 48, .* has 32"),
        ({"vocab_size": 512}, "vocabulary of 512, .* has 128"),
    ],
)
def test_a_module_of_another_target_is_refused(target, settings, said):
    with pytest.raises(ValueError, match=said):
        specdec.generate(FullVerifier(target), MTPDrafter(MTPHead({**SETTINGS, **settings})), [1, 2], 4)
