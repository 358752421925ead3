"""EAGLE-3 drafts are what its published forward gives, chain and tree."""

from __future__ import annotations

import json

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from safetensors.torch import save_file
from torch.nn.functional import silu

import specdec
from drafters import Eagle3Drafter
from drafters.eagle3_head import Eagle3Head
from drafters.trainable import FrozenTarget
from specdec import Sampling, Tap
from specdec.runtime import load
from verifiers import FullVerifier

LAYERS = (1, 2, 4)
SETTINGS = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
KNOWN = torch.arange(0, 128, 2)  # of the draft vocabulary


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(3)
    made = Eagle3Head(SETTINGS, 32, KNOWN, LAYERS, embeds=True)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def normed(x, weight):
    return weight * x / (x.square().mean(-1, keepdim=True) + SETTINGS["rms_norm_eps"]).sqrt()


def rotated(x_HSE):
    half, length = x_HSE.shape[-1] // 2, x_HSE.shape[-2]
    turn_SE = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    left, right = x_HSE.split(half, -1)
    cos, sin = turn_SE.cos(), turn_SE.sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


@torch.no_grad()
def published(weights, embedded_SX, feature_SX):
    """The layer over all pairs of a row, without a cache."""
    part = {name.removeprefix("midlayer."): value for name, value in weights.items()}
    normed_SX = normed(feature_SX, part["hidden_norm.weight"])
    pair = torch.cat([normed(embedded_SX, part["input_layernorm.weight"]), normed_SX], -1)
    q, k, v = (
        (pair @ part[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, 8)).transpose(0, 1) for name in "qkv"
    )
    q, k, v = rotated(q), rotated(k).repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    scores = (q @ k.transpose(1, 2)) / 8**0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    stream = feature_SX + mixed.transpose(0, 1).flatten(1) @ part["self_attn.o_proj.weight"].T
    inner = normed(stream, part["post_attention_layernorm.weight"])
    gate, up = inner @ part["mlp.gate_proj.weight"].T, inner @ part["mlp.up_proj.weight"].T
    return stream + (silu(gate) * up) @ part["mlp.down_proj.weight"].T


@torch.no_grad()
def reference(head, target, row, drafted):
    """[N + 1, D] logits after a row, and after each of some drafted tokens."""
    weights = head.state_dict()
    states = target(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
    last = []
    hook = target.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
    target(torch.tensor([row]), use_cache=False)
    hook.remove()
    tapped = [(last[0] if layer == 4 else states[layer])[0, :-1] for layer in LAYERS]
    features, tokens, logits = torch.cat(tapped, -1) @ weights["fc.weight"].T, list(row[1:]), []
    for token in [*drafted, None]:
        own = published(weights, weights["embed_tokens.weight"][tokens], features)
        logits.append(normed(own[-1], weights["norm.weight"]) @ weights["lm_head.weight"].T)
        if token is not None:
            tokens, features = [*tokens, token], torch.cat([features, own[-1:]])
    return torch.stack(logits)


class Watched(Eagle3Drafter):
    """Notes the rows it was asked about, and its drafts."""

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.seen.append((context.row(0), made))
        return made


def watched(target, head, prompt, new=24, sampling=None, **shape):
    drafter = Watched(head, **shape)
    drafter.seen = []
    result = specdec.generate(FullVerifier(target), drafter, prompt, new, sampling=sampling)
    assert not result.metrics.faults
    return result, drafter.seen


@pytest.mark.parametrize("length", [1, 4])
def test_a_chain_is_the_published_forwards(target, head, length):
    prompt = random_prompt(9, 1)
    result, seen = watched(target, head, prompt, length=length)
    assert result.row() == plain_greedy(target, prompt, 24) and len(seen) > 5
    for row, draft in seen:
        tokens = draft.tokens[0].tolist()
        logits = reference(head, target, row, tokens)[:-1]
        assert KNOWN[logits.argmax(-1)].tolist() == tokens[: len(logits)]


def test_laws_are_the_published_forwards(target, head):
    _, seen = watched(target, head, random_prompt(7, 2), sampling=Sampling(temperature=1.0), length=3)
    for row, draft in seen:
        expected = reference(head, target, row, draft.tokens[0].tolist())[:-1].softmax(-1)
        assert torch.allclose(draft.laws[0][:, KNOWN], expected, atol=1e-5)
        assert draft.laws[0].sum(-1) == pytest.approx(torch.ones(draft.size).numpy(), abs=1e-5)


def test_a_tree_follows_its_paths(target, head):
    prompt = random_prompt(8, 3)
    result, seen = watched(target, head, prompt, length=3, width=2)
    assert result.row() == plain_greedy(target, prompt, 24)
    for row, draft in seen:
        tokens, parents = draft.tokens[0].tolist(), draft.parents[0].tolist()
        for node, parent in enumerate(parents):
            path, at = [], parent
            while at >= 0:
                path.insert(0, tokens[at])
                at = parents[at]
            best = KNOWN[reference(head, target, row, path)[-1].topk(2).indices].tolist()
            assert tokens[node] in best


def test_rows_of_a_batch_do_not_touch_each_other(target, head):
    prompts = [random_prompt(9, 1), random_prompt(1, 2), random_prompt(5, 3)]
    together = specdec.generate(FullVerifier(target), Eagle3Drafter(head, length=3), prompts, 20)
    for index, prompt in enumerate(prompts):
        alone = specdec.generate(FullVerifier(target), Eagle3Drafter(head, length=3), prompt, 20)
        rounds = [(e.accepted, e.committed) for e in together.trace.rounds if e.row == index]
        assert together.row(index) == alone.row() == plain_greedy(target, prompt, 20)
        assert rounds == [(e.accepted, e.committed) for e in alone.trace.rounds]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_hidden": 48}, "hidden size of 48, but this one has 32"),
        ({"settings": {**SETTINGS, "vocab_size": 512}, "ids": None}, "vocabulary of 512, but this one has 128"),
        ({"layers": (2, 5, 9)}, r"behind layers \(2, 5, 9\), but the target has 4"),
        ({"embeds": False}, "no embedding of its own"),
    ],
)
def test_a_head_of_another_target_is_refused(target, options, said):
    made = {"settings": SETTINGS, "target_hidden": 32, "ids": KNOWN, "layers": LAYERS, "embeds": True, **options}
    with pytest.raises(ValueError, match=said):
        specdec.generate(FullVerifier(target), Eagle3Drafter(Eagle3Head(**made)), [1, 2], 4)


def on_disk(head, folder, layout, **changes):
    """A checkpoint as its authors write it: names and sizes only, from the published description."""
    weights = head.state_dict()
    plain = layout != "eagle3"
    tensors = {name.replace("midlayer.", "layers.0." if plain else "midlayer."): w for name, w in weights.items()}
    tensors["d2t"] = KNOWN - torch.arange(len(KNOWN))
    tensors["t2d"] = torch.isin(torch.arange(128), KNOWN)
    config = {"draft_vocab_size": len(KNOWN), "target_hidden_size": 32}
    if layout == "modelopt":
        del tensors["t2d"]
        config |= {**SETTINGS, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1, 3]}}
    elif layout == "speculators":
        config |= {"transformer_layer_config": SETTINGS, "eagle_aux_hidden_state_layer_ids": [1, 2, 4]}
        config |= {"speculators_model_type": "eagle3", "norm_before_residual": False}
    else:
        config |= {
            **SETTINGS,
            "eagle_aux_hidden_state_layer_ids": [1, 2, 4],
            "architectures": ["LlamaForCausalLM"],
        }
    tensors = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
    folder.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("layout", ["eagle3", "modelopt", "speculators"])
def test_public_layouts_load_to_the_same_drafts(target, head, tmp_path, layout):
    prompt = random_prompt(9, 1)
    _, expected = watched(target, head, prompt, length=3)
    _, seen = watched(target, on_disk(head, tmp_path / "head", layout), prompt, length=3)
    assert [draft.tokens.tolist() for _, draft in seen] == [draft.tokens.tolist() for _, draft in expected]


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
def test_what_is_saved_loads_to_the_same_weights(head, tmp_path, layout):
    head.save(tmp_path / layout, layout, target="tiny")
    again = Eagle3Head.load(tmp_path / layout)
    assert again.ids.tolist() == KNOWN.tolist() and tuple(again.layers) == LAYERS
    assert again.target_hidden == 32 and again.midlayer.norm_before_residual is False
    for name, weight in head.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    again.save(tmp_path / "again", layout, target="tiny")
    first, second = (tmp_path / folder / "model.safetensors" for folder in (layout, "again"))
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(ValueError, match="layout must be one of eagle3, speculators, not 'gguf'"):
        head.save(tmp_path / "no", "gguf")


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
def test_others_find_angles_and_layers_where_they_look(head, tmp_path, layout):
    """Programs of the time before ``rope_parameters`` take 10 000 where there is no ``rope_theta``."""
    scaled = {"rope_type": "linear", "factor": 2.0}
    made = Eagle3Head({**SETTINGS, "rope_theta": 5e5, "rope_scaling": dict(scaled)}, 32, KNOWN, LAYERS)
    made.save(tmp_path, layout)
    told = json.loads((tmp_path / "config.json").read_text())
    sizes = told["transformer_layer_config"] if layout == "speculators" else told
    assert sizes["rope_theta"] == 5e5 and sizes["rope_scaling"] == scaled
    assert told["eagle_aux_hidden_state_layer_ids"] == list(LAYERS)
    assert told["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [layer - 1 for layer in LAYERS]
    assert Eagle3Head.load(tmp_path).layers == LAYERS
    torch.testing.assert_close(Eagle3Head.load(tmp_path).rotary.inv_freq, made.rotary.inv_freq)


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
def test_a_head_for_a_target_of_another_depth_is_refused(target, tmp_path, layout):
    Eagle3Head.fresh(FrozenTarget(load(target).model.network)).save(tmp_path, layout)
    specdec.generate(FullVerifier(target), Eagle3Drafter(tmp_path), [1, 2, 3], 4)
    with pytest.raises(ValueError, match="number of layers of 4, but this one has 6"):
        specdec.generate(FullVerifier(llama(num_hidden_layers=6)), Eagle3Drafter(tmp_path), [1, 2, 3], 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"midlayer.self_attn.q_proj.weight": None}, "lacks midlayer.self_attn.q_proj.weight"),
        ({"more.weight": torch.zeros(2)}, "belong nowhere .more.weight"),
        ({"norm.weight": torch.zeros(7)}, r"norm.weight in .* has shape \[7\] where \[24\] is needed"),
        ({"d2t": None}, "lacks d2t: its head knows 64 of 128 tokens"),
        ({"t2d": torch.ones(128, dtype=torch.bool)}, "d2t and t2d in .* disagree"),
    ],
)
def test_every_tensor_is_accounted_for(head, tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        Eagle3Head.load(on_disk(head, tmp_path, "eagle3", **changes))


def test_a_checkpoint_without_sizes_is_refused(head, tmp_path):
    folder = on_disk(head, tmp_path, "eagle3")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json beside .* that gives hidden_size and vocab_size"):
        Eagle3Drafter(folder)


def test_a_base_goes_on_learning_with_a_part_of_its_vocabulary(target, head, tmp_path):
    head.save(tmp_path)
    counted = FrozenTarget(load(target).model.network, torch.arange(head.vocab_size))
    made = Eagle3Head.fresh(counted, 3, base=tmp_path)
    assert made.ids.tolist() == head.ids.sort().values[-3:].tolist(), "the most frequent that the base knows"
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in made.parameters())
    kept = torch.isin(head.ids, made.ids)
    for name, weight in head.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight[kept] if name == "lm_head.weight" else weight), name
    with pytest.raises(ValueError, match="at least 1 token, not 0"):
        Eagle3Head.fresh(counted, 0, base=tmp_path)
    made.save(tmp_path / "narrow")
    assert Eagle3Head.load(tmp_path / "narrow").ids.tolist() == made.ids.tolist()


def test_the_training_time_test_teaches_what_drafting_does(target, head):
    """Step j of the losses is the cross-entropy of the token j behind, drafted with j features of its own."""
    row = random_prompt(12, 5)
    network = FullVerifier(target).model.network
    tokens = torch.tensor([row])
    with torch.no_grad():
        hidden = target(tokens, output_hidden_states=True, use_cache=False).hidden_states
        last = []
        hook = target.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
        logits = target(tokens, use_cache=False).logits[0]
        hook.remove()
        states = {Tap(layer): last[0] if layer == 4 else hidden[layer] for layer in LAYERS}
        wanted = torch.zeros(1, 12, dtype=torch.bool)
        wanted[0, 4:11] = True
        losses = head.losses(states, tokens, wanted, network)
    assert list(losses) == [f"step {step}" for step in range(1, 8)]
    for step in range(7):
        terms = []
        for place in range(4, 11):  # where the last true pair is
            said = place + step + 1  # whose law is to be learnt
            if said < 11 and logits[said].argmax() in KNOWN:
                mine = reference(head, target, row[: place + 2], row[place + 2 : place + 2 + step])[-1]
                terms.append(-(logits[said][KNOWN].softmax(-1) * mine.log_softmax(-1)).sum())
        expected = 0.8**step * torch.stack(terms).mean() if terms else torch.tensor(0.0)
        assert losses[f"step {step + 1}"] == pytest.approx(expected.item(), abs=1e-4), step
