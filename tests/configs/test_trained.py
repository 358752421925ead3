"""``drafter=trained`` drafts with the heads that are shipped for the target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import specdec
from drafters import AdapterDrafter, Eagle3Drafter, MedusaDrafter, StreamDrafter, weights
from experiments.build import arms, build, weights_of
from experiments.run import CONF
from verifiers import FullVerifier

KINDS = {
    "eagle3": Eagle3Drafter,
    "eagle3_tree": Eagle3Drafter,
    "medusa": MedusaDrafter,
    "medusa_tree": MedusaDrafter,
    "adapter": AdapterDrafter,
    "adapter_tree": AdapterDrafter,
    "stream": StreamDrafter,
}
FORECAST = ["forecast=all_accepted", "channel=process"]


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def folder(tiny_heads: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Heads that are shipped for a target called tiny."""
    place = tmp_path / "shipped"
    for head in {name.removesuffix("_tree") for name in KINDS}:
        (place / "tiny" / head).mkdir(parents=True)
        for file in tiny_heads[head].iterdir():
            (place / "tiny" / head / file.name).symlink_to(file)
    monkeypatch.setattr(weights, "SHIPPED", place)
    return place


def composed(*overrides: str) -> DictConfig:
    return compose("config", ["device=cpu", "dtype=float32", "baselines=[]", *overrides])


def test_every_arm_drafts_with_the_targets_head(tiny_model_dir: Path, folder: Path) -> None:
    config = composed("drafter=trained", "target=tiny", "drafter.eagle3.length=3")
    assert list(config.drafter) == list(KINDS) and config.drafter.eagle3.length == 3
    files = {name: [folder / "tiny" / name.removesuffix("_tree")] for name in KINDS}
    assert weights_of(config, "trained") == files
    verifier = FullVerifier(tiny_model_dir, dtype="float32", device="cpu")
    plain, *made = arms(config, "trained", verifier)
    tokens = specdec.generate(verifier, plain.drafter, [[5, 6, 7]], 8).tokens
    assert {arm.name: type(arm.drafter) for arm in made} == KINDS
    for arm in made:
        result = specdec.generate(verifier, arm.drafter, [[5, 6, 7]], 8)
        assert not result.metrics.faults and result.metrics.drafted_tokens > 0, arm.name
        assert result.tokens.equal(tokens), arm.name


def test_options_are_those_of_each_drafter_but_for_the_weights() -> None:
    config = composed("drafter=trained", "target=tiny")
    for name, part in config.drafter.items():
        alone = OmegaConf.to_container(composed(f"drafter={name}").drafter)
        assert {**part, "weights": "???"} == alone, name


@pytest.mark.parametrize("name", ["adapter", "eagle", "eagle3", "early_exit", "medusa", "model", "redrafter"])
def test_a_tree_is_the_chain_but_for_width_and_nodes(name: str) -> None:
    chain, tree = (OmegaConf.to_container(composed(f"drafter={name}{kind}").drafter) for kind in ("", "_tree"))
    width, nodes = (3, 12) if name == "early_exit" else (4, 24)
    assert tree == {**chain, "width": width, "nodes": nodes} != chain


@pytest.mark.parametrize(("given", "said"), [("7", "in quotes if a number: 7"), ("[a,b]", "of one trained head")])
def test_weights_are_one_name(given: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"eagle3: .*{said}"):
        weights_of(composed("drafter=eagle3", f"drafter.weights={given}"), "eagle3")


@pytest.mark.parametrize("given", ["tiny/eagle3", "${target}/eagle3"])
def test_one_head_by_its_name(given: str, folder: Path) -> None:
    config = composed("drafter=eagle3", "target=tiny", f"drafter.weights={given}")
    assert weights_of(config, "eagle3") == {"eagle3": [folder / "tiny" / "eagle3"]}


def test_an_arm_can_be_left_out() -> None:
    config = composed("drafter=trained", "target=tiny", "~drafter.medusa")
    assert list(weights_of(config, "trained")) == [name for name in KINDS if name != "medusa"]


@pytest.mark.parametrize(
    "overrides",
    [["drafter=trained"], ["drafter=trained", *FORECAST], ["drafter=eagle3", "drafter.weights=other/eagle3"]],
)
def test_a_target_without_heads_is_an_error_before_it_is_loaded(overrides: list[str]) -> None:
    # A drafter that is made later raises InstantiationException, and so does a target that is not there.
    told = r"^\w+: there are no weights at other/eagle3: .* or one that is shipped: tiny/adapter, tiny/eagle3, "
    with pytest.raises(FileNotFoundError, match=told):
        build(composed("target=other", *overrides), "trained")


def test_weights_of_a_drafter_that_is_made_elsewhere_need_not_be_here() -> None:
    there = ["drafter=eagle3", "drafter.weights=only/there", "channel=process", "channel.address=localhost:29500"]
    assert weights_of(composed(*there, "forecast=all_accepted"), "eagle3") == {}
    with pytest.raises(FileNotFoundError, match="no weights at only/there"):  # in turns it is made here
        weights_of(composed(*there), "eagle3")


def test_drafters_without_weights_are_not_asked_for_any() -> None:
    assert weights_of(composed("drafter=training_free"), "training_free") == {}
    assert weights_of(composed("drafter=mtp"), "mtp") == weights_of(composed("drafter=plain"), "plain") == {}
