"""DFlash drafts are what its published forward gives, chain and tree, and follow no token of their own."""

from __future__ import annotations

import json

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from published import attended, heads, jittered, mlp, normed, rotated
from safetensors.torch import load_file, save_file

import specdec
from drafters import DFlashDrafter
from drafters.dflash import DFlashHead, spread
from specdec import Sampling
from verifiers import FullVerifier

BLOCK, MASK, LAYERS = 5, 127, [0, 2]
SETTINGS = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "block_size": BLOCK,
    "dflash_config": {"mask_token_id": MASK, "target_layer_ids": LAYERS},
}


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(3)
    return jittered(DFlashHead(SETTINGS))


@torch.no_grad()
def reference(head, target, row, layers=LAYERS):
    """[BLOCK - 1, V] logits of the masked places behind a row, every key computed anew."""
    part = head.state_dict()
    states = target(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
    fused = torch.cat([states[layer + 1][0, :-1] for layer in layers], -1) @ part["fc.weight"].T
    feature = normed(fused, part["hidden_norm.weight"])
    block = target.get_input_embeddings()(torch.tensor([row[-1], *[MASK] * (BLOCK - 1)]))
    place = torch.arange(len(row) - 1 + BLOCK)
    for layer in range(SETTINGS["num_hidden_layers"]):
        own = {name.removeprefix(f"layers.{layer}."): weight for name, weight in part.items()}
        inner = normed(block, own["input_layernorm.weight"])
        read = torch.cat([feature, inner])
        q = normed(heads(inner, own["self_attn.q_proj.weight"], 8), own["self_attn.q_norm.weight"])
        k = normed(heads(read, own["self_attn.k_proj.weight"], 8), own["self_attn.k_norm.weight"])
        v = heads(read, own["self_attn.v_proj.weight"], 8)
        all_seen = torch.ones(BLOCK, len(read), dtype=torch.bool)
        mixed = attended(rotated(q, place[-BLOCK:]), rotated(k, place), v, all_seen)
        block = block + mixed @ own["self_attn.o_proj.weight"].T
        block = block + mlp(normed(block, own["post_attention_layernorm.weight"]), own, "mlp.")
    return target.lm_head(normed(block[1:], part["norm.weight"]))


class Watched(DFlashDrafter):
    """Notes the rows it was asked about, and its drafts."""

    def draft(self, context, noise):
        made = super().draft(context, noise)
        self.seen += [
            (context.row(row), made.tokens[row], made.parents[row], None if made.laws is None else made.laws[row])
            for row in range(len(context.lengths))
        ]
        return made


def watched(target, head, prompts, new=24, sampling=None, **shape):
    drafter = Watched(head, **shape)
    drafter.seen = []
    result = specdec.generate(FullVerifier(target), drafter, prompts, new, sampling=sampling)
    assert not result.metrics.faults
    return result, drafter.seen


@pytest.mark.parametrize("length", [1, 3, None])
def test_a_chain_is_the_published_forward(target, head, length):
    prompt = random_prompt(9, 1)
    result, seen = watched(target, head, prompt, length=length)
    assert result.row() == plain_greedy(target, prompt, 24) and len(seen) > 5
    for row, tokens, _, _ in seen:
        assert reference(head, target, row).argmax(-1)[: len(tokens)].tolist() == tokens.tolist()


def test_laws_are_the_published_forwards_in_every_row_of_a_batch(target, head):
    prompts = [random_prompt(9, 1), random_prompt(1, 2), random_prompt(5, 3)]
    _, seen = watched(target, head, prompts, sampling=Sampling(temperature=1.0))
    assert len({len(row) for row, *_ in seen}) > 5
    for row, tokens, _, laws in seen:
        expected = reference(head, target, row).softmax(-1)[: len(tokens)]
        assert torch.allclose(laws, expected, atol=1e-5)


def test_a_law_does_not_depend_on_what_was_drafted_before_it(target, head):
    laws = []
    for seed in range(4):  # the first draft of each follows the same row, with other tokens
        drafter = Watched(head, length=3)
        drafter.seen = []
        options = {"sampling": Sampling(temperature=1.0), "seed": seed, "max_new_tokens": 8}
        specdec.generate(FullVerifier(target), drafter, random_prompt(9, 1), **options)
        first = next(seen for seen in drafter.seen if len(seen[1]) == 3)
        laws.append((first[0], first[1].tolist(), first[3]))
    same = [(tokens, law) for row, tokens, law in laws if row == laws[0][0]]
    assert all(torch.equal(law, same[0][1]) for _, law in same)


def test_a_tree_takes_the_likeliest_tokens_of_each_place(target, head):
    prompt = random_prompt(8, 3)
    result, seen = watched(target, head, prompt, length=3, width=2)
    assert result.row() == plain_greedy(target, prompt, 24)
    for row, tokens, parents, _ in seen:
        logits, depth = reference(head, target, row), {-1: 0}
        for node, parent in enumerate(parents.tolist()):
            depth[node] = depth[parent] + 1
            assert int(tokens[node]) in logits[depth[parent]].topk(2).indices.tolist()


def test_rows_of_a_batch_do_not_touch_each_other(target, head):
    prompts = [random_prompt(9, 1), random_prompt(1, 2), random_prompt(5, 3)]
    together = specdec.generate(FullVerifier(target), DFlashDrafter(head), prompts, 20)
    for index, prompt in enumerate(prompts):
        alone = specdec.generate(FullVerifier(target), DFlashDrafter(head), prompt, 20)
        assert together.row(index) == alone.row() == plain_greedy(target, prompt, 20)
        rounds = [(e.accepted, e.committed) for e in together.trace.rounds if e.row == index]
        assert rounds == [(e.accepted, e.committed) for e in alone.trace.rounds]


def test_a_checkpoint_is_read_as_published_and_written_back(target, head, tmp_path):
    names = set(head.state_dict())
    assert names == {"fc.weight", "hidden_norm.weight", "norm.weight"} | {
        f"layers.{layer}.{part}.weight"
        for layer in (0, 1)
        for part in (
            "input_layernorm",
            "post_attention_layernorm",
            *(f"mlp.{side}_proj" for side in ("gate", "up", "down")),
            *(f"self_attn.{side}_proj" for side in "qkvo"),
            *(f"self_attn.{side}_norm" for side in "qk"),
        )
    }
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["DFlashDraftModel"], **SETTINGS}))
    save_file(
        {name: weight.contiguous() for name, weight in head.state_dict().items()}, tmp_path / "model.safetensors"
    )
    prompt = random_prompt(9, 1)
    drafts = [watched(target, which, prompt)[1] for which in (head, tmp_path)]
    assert all(torch.equal(one[1], other[1]) for one, other in zip(*drafts, strict=True))
    DFlashHead.load(tmp_path).save(tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == names and all(torch.equal(written[name], head.state_dict()[name]) for name in names)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dflash_config"]["mask_token_id"] == MASK


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("fc.weight"), "lacks fc.weight"),
        (lambda found: found.update({"layers.2.odd": torch.ones(1)}), "belong nowhere .layers.2.odd"),
        (lambda found: found.update({"norm.weight": torch.ones(3)}), r"norm.weight .* where \[32\] is needed"),
    ],
)
def test_a_checkpoint_that_does_not_add_up_is_refused(head, tmp_path, change, said):
    head.save(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    change(found)
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        DFlashDrafter(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_size": 48}, "hidden size of 48, but this one has 32"),
        ({"vocab_size": 512}, "vocabulary of 512, but this one has 128"),
        ({"dflash_config": {"mask_token_id": 128, "target_layer_ids": [0]}}, "mask token is 128, .* 128 tokens"),
        ({"dflash_config": {"mask_token_id": 1, "target_layer_ids": [1, 4]}}, r"layers \(1, 4\), .* has 4"),
    ],
)
def test_a_head_of_another_target_is_refused(target, settings, said):
    with pytest.raises(ValueError, match=said):
        specdec.generate(FullVerifier(target), DFlashDrafter(DFlashHead({**SETTINGS, **settings})), [1, 2], 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"block_size": 1}, "block_size .* at least 2"),
        ({"dflash_config": {"target_layer_ids": [0]}}, "mask_token_id"),
        ({"dflash_config": {"mask_token_id": 1}}, "num_target_layers or dflash_config.target_layer_ids"),
        ({"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8}, "sliding_attention"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        DFlashHead({**SETTINGS, **settings})


def test_a_chain_longer_than_the_block_is_refused(head):
    with pytest.raises(ValueError, match="at most 4 for blocks of 5"):
        DFlashDrafter(head, length=5)


def test_the_published_choice_of_layers():
    assert spread(36, 5) == (1, 9, 17, 25, 33) and spread(28, 1) == (14,)
    settings = {**SETTINGS, "num_target_layers": 36, "num_hidden_layers": 5, "dflash_config": {"mask_token_id": 1}}
    assert DFlashHead(settings).target_layers == (1, 9, 17, 25, 33)


def test_a_state_behind_the_last_layer_is_normed_as_hugging_face_counts_it(target):
    layers = [3, 0]
    head = jittered(DFlashHead({**SETTINGS, "dflash_config": {"mask_token_id": MASK, "target_layer_ids": layers}}))
    _, seen = watched(target, head, random_prompt(9, 1), new=12)
    for row, tokens, _, _ in seen:
        assert reference(head, target, row, layers).argmax(-1)[: len(tokens)].tolist() == tokens.tolist()
