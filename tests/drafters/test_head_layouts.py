"""Heads in their authors' layouts say what a few lines of their description say, and come back as they were."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCABULARY, plain_logits, random_prompt
from published_heads import (
    Named,
    hydra,
    hydra_says,
    laid,
    medusa,
    medusa_says,
    prefilled,
    redrafter,
    redrafter_says,
    scattered,
)
from safetensors.torch import load_file
from torch import Tensor

from drafters import HydraDrafter, MedusaDrafter, ReDrafter
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.redrafter import RecurrentHead
from specdec.runtime import load
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
X, V, LENGTH = 32, VOCABULARY, 3


@dataclass(frozen=True)
class Layout:
    """How one kind of heads lies on disk, and who reads it."""

    file: str
    shapes: dict[str, tuple[int, ...]]
    says: Callable[..., Tensor]
    drafter: Callable[..., Any]
    heads: Callable[[str | Path], Any]
    config: dict[str, object]

    def lay(self, path: Path, change: Callable[[Named], object] = lambda named: None) -> Path:
        named = scattered(self.shapes)
        change(named)
        return laid(path, self.file, named, **self.config)


def one_layer(says: Callable[..., Tensor], layers: int) -> Callable[..., Tensor]:
    return lambda *what: says(*what, layers)


LAYOUTS = {
    "medusa": Layout(
        "medusa_lm_head.safetensors", medusa(X, V), medusa_says, MedusaDrafter, MedusaHeads.load,
        {"medusa_num_heads": 3, "medusa_num_layers": 1},
    ),
    "medusa, two layers, pickled": Layout(
        "medusa_lm_head.pt", medusa(X, V, layers=2), one_layer(medusa_says, 2), MedusaDrafter, MedusaHeads.load, {}
    ),
    "hydra": Layout(
        "hydra_lm_head.pt", hydra(X, V), hydra_says, HydraDrafter, HydraHeads.load,
        {"hydra_num_heads": 3, "hydra_num_layers": 2, "hydra_head_arch": "mlp", "grounded_heads": True},
    ),
    "hydra, one layer": Layout(
        "hydra_lm_head.pt", hydra(X, V, layers=1), one_layer(hydra_says, 1), HydraDrafter, HydraHeads.load, {}
    ),
    "redrafter": Layout(
        "model.safetensors", redrafter(X, V, 24), redrafter_says, ReDrafter, RecurrentHead.load,
        {"hidden_size": X, "exit_dim": 24, "num_draft_layers": 2, "rnn": True, "vocab_size": V},
    ),
    "redrafter, no projection": Layout(
        "pytorch_model.bin", redrafter(X, V, 2 * X), redrafter_says, ReDrafter, RecurrentHead.load, {}
    ),
    "redrafter, no recurrence": Layout(
        "model.safetensors", redrafter(X, V, 24, rnn=False), redrafter_says, ReDrafter, RecurrentHead.load,
        {"rnn": False},
    ),
}  # fmt: skip
PLAIN = ["medusa", "hydra", "redrafter"]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@pytest.fixture(params=PLAIN)
def plain(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


@torch.no_grad()
def last_state(module: Any, row: list[int]) -> Tensor:
    """Hugging Face's own last hidden state behind a row, [hidden]."""
    return module(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True).hidden_states[-1][
        0, -1
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3-hybrid", "gpt2"])
def test_draft_logits_are_those_of_the_description(layout: Layout, family: str, tmp_path: Path) -> None:
    module, named = FAMILIES[family](), scattered(layout.shapes)
    drafter = layout.drafter(layout.lay(tmp_path), length=LENGTH)
    context = prefilled(FullVerifier(module), drafter, ROWS)
    model = drafter._model
    model.follow(context.advice)
    said = [model.advance(context.tokens, context.lengths).logits[:, 0]]
    drafted = [[7, 9], [100, 3], [7, 7]]
    for level in range(LENGTH - 1):
        token_B1 = torch.tensor([[path[level]] for path in drafted])
        said.append(model.grow(token_B1, torch.full_like(token_B1, level - 1))[:, 0])
    embeddings = module.get_input_embeddings().weight.detach()
    scale = embeddings.shape[1] ** 0.5 if family == "gemma3-hybrid" else 1.0
    for b, row in enumerate(ROWS):
        correction = int(plain_logits(module, row)[-1].argmax())
        assert context.row(b) == [*row, correction]
        state_X, path = last_state(module, row), [correction, *drafted[b]]
        for level in range(LENGTH):
            expected = layout.says(named, state_X, scale * embeddings[path[: level + 1]])
            torch.testing.assert_close(said[level][b], expected, rtol=1e-5, atol=1e-5)


def test_export_and_import_are_identical(layout: Layout, tmp_path: Path) -> None:
    made = layout.heads(layout.lay(tmp_path / "theirs"))
    made.save(tmp_path / "ours", base_model_name_or_path="some/target")
    again = layout.heads(tmp_path / "ours")
    (file,) = (file for file in (tmp_path / "ours").iterdir() if file.name != "config.json")
    written = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    expected = scattered(layout.shapes)
    assert written.keys() == expected.keys() and all(
        torch.equal(written[name], expected[name]) for name in expected
    )
    first, second = made.state_dict(), again.state_dict()
    assert list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["base_model_name_or_path"] == "some/target"
    assert layout.heads(file).levels == made.levels, "a file alone will do"


def same(one: Named, other: Named) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_types_of_a_file_are_kept(plain: Layout, tmp_path: Path) -> None:
    named = scattered(plain.shapes, dtype=torch.bfloat16)
    made = plain.heads(laid(tmp_path, plain.file, named))
    assert {weight.dtype for weight in made.parameters()} == {torch.bfloat16}


def test_a_missing_tensor_is_named(plain: Layout, tmp_path: Path) -> None:
    for name in plain.shapes:
        with pytest.raises(ValueError, match=rf"lacks {name}: it is incomplete"):
            plain.heads(plain.lay(tmp_path, lambda named, name=name: named.pop(name)))  # type: ignore[misc]


def test_a_tensor_that_is_left_over_is_named(plain: Layout, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"belong nowhere \(something.else\)"):
        plain.heads(plain.lay(tmp_path, lambda named: named.update({"something.else": torch.zeros(1)})))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("medusa", "1.0.linear.bias"), ("hydra", "hydra_mlp.2.0.linear.weight"), ("redrafter", "rnn_u.weight")],
)
def test_a_wrong_shape_is_named(name: str, wrong: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    with pytest.raises(ValueError, match=rf"{wrong} in .* has shape \[5.*\] where \["):
        layout.heads(layout.lay(tmp_path, lambda named: named.update({wrong: torch.zeros(5, 5)})))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (medusa(16, V), "hidden size of 16, but this one has 32"),
        (medusa(X, 99), "vocabulary of 99, but this one has 128"),
        (hydra(16, V), "hidden size of 16, but this one has 32"),
        (redrafter(X, 99, 24), "vocabulary of 99, but this one has 128"),
    ],
)
def test_heads_of_another_target_are_refused(made: dict[str, tuple[int, ...]], told: str, tmp_path: Path) -> None:
    kind = next(k for k in PLAIN if set(made) == set(LAYOUTS[k].shapes))
    layout = LAYOUTS[kind]
    drafter = layout.drafter(laid(tmp_path, layout.file, scattered(made)), length=2)
    with pytest.raises(ValueError, match=told):
        prefilled(FullVerifier(FAMILIES["llama"]()), drafter, ROWS)


@pytest.mark.parametrize(("name", "kind"), zip(PLAIN, [MedusaHeads, HydraHeads, RecurrentHead], strict=True))
def test_they_say_how_deep_their_target_is(name: str, kind: Any, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    kind.fresh(FullVerifier(FAMILIES["llama"]()).model.network).save(tmp_path / "first")
    kind.load(tmp_path / "first").save(tmp_path / "again")
    drafter = layout.drafter(tmp_path / "again", length=2)
    prefilled(FullVerifier(FAMILIES["llama"]()), drafter, ROWS)
    with pytest.raises(ValueError, match="number of layers of 4, but this one has 6"):
        prefilled(FullVerifier(FAMILIES["llama"](num_hidden_layers=6)), drafter, ROWS)
    theirs = layout.drafter(layout.lay(tmp_path / "theirs"), length=2)  # it does not say
    prefilled(FullVerifier(FAMILIES["llama"](num_hidden_layers=6)), theirs, ROWS)


def test_published_configurations_of_medusa_miscount(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = laid(tmp_path, "medusa_lm_head.pt", scattered(medusa(X, V, heads=5)), medusa_num_heads=2)
    assert MedusaHeads.load(file).levels == 5 and "medusa_num_heads=2, but holds 5" in caplog.text


@pytest.mark.parametrize(
    ("name", "config", "told"),
    [
        ("hydra", {"hydra_num_heads": 4}, "hydra_num_heads is 4 .* but 3 by its tensors"),
        ("hydra", {"grounded_heads": False}, "grounded_heads is False"),
        ("hydra", {"hydra_head_arch": "prefix-mlp"}, r"is Hydra\+\+"),
        ("hydra", {"hydra_head_arch": "eagle-attn"}, "architecture eagle-attn"),
        ("hydra", {"hidden_state_offset": 1}, "hidden_state_offset must be 0"),
        ("redrafter", {"exit_dim": 64}, "exit_dim is 64 .* but 24 by its tensors"),
        ("redrafter", {"rnn": False}, "rnn is False"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    name: str, config: dict[str, object], told: str, tmp_path: Path
) -> None:
    layout = LAYOUTS[name]
    with pytest.raises(ValueError, match=told):
        layout.heads(laid(tmp_path, layout.file, scattered(layout.shapes), **config))


def test_hydra_plus_plus_is_known_by_its_tensors(tmp_path: Path) -> None:
    named = scattered({"prefix_embeding_layer.norm.weight": (X,), "hydra_mlp.0.1.linear.weight": (X, 2 * X)})
    with pytest.raises(ValueError, match=r"is Hydra\+\+"):
        HydraHeads.load(laid(tmp_path, "hydra_lm_head.pt", named))


def test_an_embedding_that_hydra_s_files_carry_along_is_read(tmp_path: Path) -> None:
    shapes = {**hydra(X, V), "input_embed_fn.weight": (V, X)}
    heads = HydraHeads.load(laid(tmp_path, "hydra_lm_head.pt", scattered(shapes)))
    target, tokens_12 = load(FAMILIES["llama"]()).model.network, torch.tensor([[3, 5]])
    state_12X = torch.ones(1, 2, X)
    read_12Y = heads.read(0, state_12X, tokens_12, target)
    assert torch.equal(read_12Y[0, :, X:], scattered(shapes)["input_embed_fn.weight"][[3, 5]])


def test_heads_of_hydra_that_read_no_tokens_are_those_of_medusa(tmp_path: Path) -> None:
    named = scattered(hydra(X, V, layers=1, grounded=False))
    file = laid(tmp_path, "hydra_lm_head.pt", named, grounded_heads=False)
    drafter, module = HydraDrafter(file, length=1), FAMILIES["llama"]()
    context = prefilled(FullVerifier(module), drafter, ROWS[:1])
    drafter._model.follow(context.advice)  # type: ignore[union-attr]
    said = drafter._model.advance(context.tokens, context.lengths).logits[0, 0]  # type: ignore[union-attr]
    as_medusa = {name.removeprefix("hydra_mlp."): named[name] for name in named if name.startswith("hydra_mlp.0")}
    as_medusa["0.1.weight"] = named["hydra_lm_head.0.weight"]
    expected = medusa_says(as_medusa, last_state(module, ROWS[0]), torch.zeros(1, X))
    torch.testing.assert_close(said, expected + named["hydra_lm_head.0.bias"], rtol=1e-5, atol=1e-5)


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"not a checkpoint", "is damaged, or holds more than tensors"),
        (b"", "is damaged, or holds more than tensors"),
        (pickle.dumps(Trap(), protocol=2), "is damaged, or holds more than tensors, which is not run"),
    ],
    ids=["junk", "nothing", "trap"],
)
def test_a_pickle_is_not_run(content: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "medusa_lm_head.pt").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        MedusaDrafter(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no weights at .* medusa_lm_head.safetensors or medusa_lm_head.pt"
    ):
        MedusaDrafter(tmp_path)
    torch.save([torch.ones(1)], tmp_path / "hydra_lm_head.pt")
    with pytest.raises(ValueError, match="must hold tensors by their names"):
        HydraDrafter(tmp_path)
    laid(tmp_path, "model.safetensors", scattered(redrafter(X, V, 24)))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is damaged: download"):
        ReDrafter(tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        ReDrafter(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="is no configuration"):
        ReDrafter(tmp_path)


def test_the_safe_file_is_read_where_there_are_two(tmp_path: Path) -> None:
    (tmp_path / "medusa_lm_head.pt").write_bytes(b"not a checkpoint")
    assert MedusaHeads.load(laid(tmp_path, "medusa_lm_head.safetensors", scattered(medusa(X, V)))).levels == 3
