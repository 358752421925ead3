"""Trained exits: what they compute, that an untrained one is the raw exit, and what is said of other files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCABULARY, llama, random_prompt
from safetensors.torch import load_file, save_file
from torch import Tensor

import specdec
from drafters import EarlyExitDrafter
from specdec import Draft, Sampling
from specdec.exit import Exit, Glimpse
from specdec.forecast import EarlyExitTopK
from specdec.hypotheses import Candidates
from specdec.runtime import load
from specdec.runtime.checkpoints import SHORT_NAMES
from specdec.sequences import Sequences
from specdec.translator import SHIPPED, Translator, facts, load_translator, save_translators, translators
from verifiers import FullVerifier

HIDDEN, INNER = 32, 6
SHAPES = {
    "matrix": (HIDDEN, HIDDEN),
    "bias": (HIDDEN,),
    "gate": (INNER, HIDDEN),
    "value": (INNER, HIDDEN),
    "out": (HIDDEN, INNER),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(*names: str) -> dict[str, Tensor]:
    return {name: 0.2 * noise(*SHAPES[name], seed=seed) for seed, name in enumerate(names or SHAPES)}


def untrained() -> Translator:
    silent = {name: torch.zeros(SHAPES[name]) for name in ("matrix", "bias", "out")}
    return Translator({**weights(), **silent})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "exits.safetensors"
    save_translators(path, {3: Translator(weights()), 1: Translator(weights("matrix", "bias"))}, target="tiny")
    return path


class TestMap:
    @pytest.mark.parametrize("names", [("matrix", "bias"), ("gate", "value", "out"), tuple(SHAPES)], ids=len)
    def test_adds_an_affine_map_and_a_gated_block_of_the_normalised_state(self, names: tuple[str, ...]) -> None:
        given, state = weights(*names), 3 * noise(HIDDEN, seed=9)
        root = (sum(x * x for x in state.tolist()) / HIDDEN + 1e-6) ** 0.5
        unit, change = state / root, torch.zeros(HIDDEN)
        if "matrix" in names:
            change = change + given["matrix"] @ unit + given["bias"]
        if "out" in names:
            gate = given["gate"] @ unit
            change = change + given["out"] @ (gate / (1 + (-gate).exp()) * (given["value"] @ unit))
        said = Translator(given)(state.expand(2, 5, -1))
        torch.testing.assert_close(said, (state + root * change).expand(2, 5, -1))

    def test_follows_the_scale_of_the_state(self) -> None:
        state, translator = noise(4, HIDDEN), Translator(weights())
        torch.testing.assert_close(translator(100 * state), 100 * translator(state), rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_answers_in_the_type_of_the_state(self, dtype: torch.dtype) -> None:
        translator, state = Translator(weights()), noise(3, HIDDEN).to(dtype)
        said = translator(state)
        assert said.dtype == dtype
        torch.testing.assert_close(said.float(), translator(state.float()), rtol=0.05, atol=0.05)

    def test_fits_its_weights_to_a_type_once_and_leaves_them_behind_when_it_travels(self) -> None:
        translator, state = Translator(weights()), noise(3, HIDDEN).bfloat16()
        said = translator(state)
        first = translator._fitting(state)
        assert translator._fitting(state)["matrix"] is first["matrix"]
        other = pickle.loads(pickle.dumps(translator))
        assert other._fitted == {} and torch.equal(other(state), said)

    def test_another_hidden_size_is_an_error_that_names_both(self) -> None:
        with pytest.raises(ValueError, match="hidden size of 32, but the target's is 48"):
            Translator(weights())(torch.zeros(2, 48))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"bias": torch.zeros(3)}, r"bias of a trained exit must be \[32\], not \[3\]"),
            ({"value": torch.zeros(INNER + 1, HIDDEN)}, r"value .* must be \[6, 32\], not \[7, 32\]"),
            ({"more": torch.zeros(1)}, "a trained exit has .* not .*more"),
        ],
    )
    def test_weights_that_do_not_fit_are_an_error(self, change: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Translator({**weights(), **change})


class TestExit:
    def test_one_that_is_put_together_anew_has_the_same_weights(self, saved: Path) -> None:
        # As recordings do: they read the weights where they were when they were made.
        made = [Exit(3, trained=str(saved)) for _ in range(2)]
        assert made[0].map is not None and made[0].map is made[1].map

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_an_untrained_one_is_the_raw_exit_bit_for_bit(self, dtype: str) -> None:
        raw, same = (said(Exit(2, 8, map), dtype) for map in (None, untrained()))
        assert equal(raw, same)

    def test_a_trained_one_is_another(self) -> None:
        raw, other = (said(Exit(2, 8, map), "float32") for map in (None, Translator(weights())))
        assert not equal(raw, other)

    def test_can_be_named_by_its_file(self, saved: Path) -> None:
        named, given = (
            said(Exit(3, trained=str(saved)), "float32"),
            said(Exit(3, 8, load_translator(saved, 3)), "float32"),
        )
        assert equal(named, given)
        assert Exit(3, trained=str(saved)) == Exit(3, trained=str(saved))

    def test_one_that_is_not_there_is_an_error_before_the_target_runs(self, saved: Path) -> None:
        verifier = FullVerifier(llama())
        forecast = EarlyExitTopK(Exit(2, trained=str(saved)))
        with pytest.raises(ValueError, match="no trained exit behind layer 2, only behind 1, 3"):
            verifier.begin(Sequences.start([[1, 2, 3]], 4), exit=forecast.exit)

    @pytest.mark.parametrize("more", [{"layer": None}, {"layer": 2, "translator": untrained()}], ids=["no", "two"])
    def test_a_file_without_a_layer_or_beside_a_translator_is_an_error(self, more: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="named by its file and its layer"):
            Exit(trained="smollm2-135m-instruct", **more)

    def test_changes_no_token_of_a_generation(self) -> None:
        verifier, prompt = FullVerifier(llama()), random_prompt(9, seed=1)
        plain = specdec.generate(verifier, EarlyExitDrafter(), prompt, max_new_tokens=24)
        forecast = EarlyExitTopK(Exit(2, 8, Translator(weights())), 24)
        trained = specdec.generate(verifier, EarlyExitDrafter(), prompt, max_new_tokens=24, forecast=forecast)
        assert trained.row() == plain.row() and trained.metrics.faults == {}
        assert trained.metrics.hit_rate

    def test_one_for_another_target_says_so_before_a_token_is_made(self) -> None:
        other = Translator({"matrix": torch.zeros(48, 48), "bias": torch.zeros(48)})
        with pytest.raises(ValueError, match="hidden size of 48, but the target's is 32"):
            specdec.generate(
                FullVerifier(llama()), EarlyExitDrafter(), [1, 2, 3], forecast=EarlyExitTopK(Exit(2, 8, other))
            )

    def test_one_for_another_depth_is_an_error_before_the_target_runs(self, tmp_path: Path) -> None:
        for depth in (4, 30):
            save_translators(tmp_path / f"{depth}.safetensors", {2: Translator(weights())}, depth=depth)
        begin = FullVerifier(llama()).begin
        begin(Sequences.start([[1, 2, 3]], 4), exit=Exit(2, trained=str(tmp_path / "4.safetensors")))
        with pytest.raises(ValueError, match="for a target of 30 layers, but this one has 4"):
            begin(Sequences.start([[1, 2, 3]], 4), exit=Exit(2, trained=str(tmp_path / "30.safetensors")))


def said(exit: Exit, dtype: str) -> Candidates:
    """What the exit says of a window of a tiny target."""
    model = load(llama().to(getattr(torch, dtype))).model
    row, nodes = torch.tensor([random_prompt(9, seed=1)]), torch.tensor([random_prompt(3, seed=2)])
    draft = Draft.chain(nodes, torch.tensor([9]), torch.tensor([3]))
    seen: list[Glimpse] = []
    model.begin(1, 32)
    glance = exit.glance(model, draft, Sampling(), seen.append)
    model.advance(row, torch.tensor([9]), (draft.tokens, draft.parents), glance=glance)
    heard = seen[0].read()
    assert heard.tokens.max() < VOCABULARY
    return heard


def equal(one: Candidates, other: Candidates) -> bool:
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.scores, other.scores)


class TestFile:
    def test_keeps_what_was_saved(self, saved: Path) -> None:
        found, state = translators(saved), noise(2, HIDDEN)
        assert list(found) == [1, 3] and set(found[1].weights) == {"matrix", "bias"}
        rounded = Translator({name: weight.bfloat16().float() for name, weight in weights().items()})
        assert torch.equal(load_translator(saved, 3)(state), rounded(state))
        known = facts(saved)
        assert (known["target"], known["hidden"], known["layers"]) == ("tiny", "32", "[1, 3]")

    def test_a_layer_that_is_not_there_names_those_that_are(self, saved: Path) -> None:
        with pytest.raises(ValueError, match="no trained exit behind layer 2, only behind 1, 3"):
            load_translator(saved, 2)

    @pytest.mark.parametrize(
        "name", ["no-such-model", "some/where/no-such-model", "missing.safetensors", "../exits"]
    )
    def test_a_target_without_exits_names_those_with(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"no trained exits for .* smollm2-135m-instruct"):
            translators(name)

    @pytest.mark.parametrize("keep", [0, 7, 200, -100])
    def test_a_file_that_was_cut_short_is_damaged(self, saved: Path, keep: int) -> None:
        saved.write_bytes(saved.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"exits\.safetensors is damaged"):
            translators(saved)
        if keep < 200:
            with pytest.raises(ValueError, match=r"exits\.safetensors is damaged"):
                facts(saved)

    @pytest.mark.parametrize("metadata", [None, {"hidden": "wide"}, {"hidden": "48"}])
    def test_a_file_of_something_else_is_damaged(self, saved: Path, metadata: dict[str, str] | None) -> None:
        save_file(load_file(saved), saved, metadata)
        with pytest.raises(ValueError, match=r"damaged.*(hidden|wide|48)"):
            translators(saved)

    def test_a_weight_that_is_missing_is_damage(self, saved: Path) -> None:
        rest = {name: weight for name, weight in load_file(saved).items() if name != "1.bias"}
        save_file(rest, saved, {"hidden": "32"})
        with pytest.raises(ValueError, match=r"damaged.*a trained exit has"):
            translators(saved)


class TestShipped:
    def test_files_are_small_and_belong_to_targets_that_there_are(self) -> None:
        files = sorted(SHIPPED.glob("*.safetensors"))
        assert [file.stem for file in files] == sorted(SHORT_NAMES)
        assert sum(file.stat().st_size for file in files) < 5e6
        for name, packaged in SHORT_NAMES.items():
            assert facts(name)["sha256"] == packaged.sha256

    def test_those_of_smollm2_fit_it(self, smollm2) -> None:
        found = translators("smollm2-135m-instruct")
        assert {15, 22, 26} <= found.keys()
        assert {exit.hidden for exit in found.values()} == {smollm2.model.network.config.hidden_size}

    def test_at_three_quarters_they_know_the_next_token_twice_as_often_as_the_raw_exit(self, smollm2) -> None:
        verifier = FullVerifier(smollm2.model, tokenizer=smollm2.tokenizer)
        hits = {}
        for name, map in (("raw", None), ("trained", load_translator("smollm2-135m-instruct", 22))):
            forecast = EarlyExitTopK(Exit(22, 1, map), branches=None)
            drafter = EarlyExitDrafter(exit_layer=1, length=1)  # the cheapest: what it drafts plays no part
            prompt = [{"role": "user", "content": "Explain why the sky is blue."}]
            result = specdec.generate(verifier, drafter, prompt, max_new_tokens=24, forecast=forecast)
            hits[name] = result.metrics.hit_rate or 0.0
        assert hits["trained"] > 2 * hits["raw"] > 0
