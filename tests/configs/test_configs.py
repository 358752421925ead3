"""Every file in conf/ composes, and makes what it says."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

import drafters
import specdec
from experiments import data
from experiments.build import arms, check, decoding_of
from experiments.run import CONF
from specdec.exit import Exit
from specdec.forecast import Blend
from verifiers import FullVerifier

# Heads are for training: see test_heads.
GROUPS = sorted(group.name for group in CONF.iterdir() if group.is_dir() and group.name not in ("hydra", "head"))
OPTIONS = [
    (group, str(file.relative_to(CONF / group).with_suffix("")))
    for group in GROUPS
    for file in sorted((CONF / group).rglob("*.yaml"))
]
MADE = [option for option in OPTIONS if option[0] != "experiment"]
# The arms of drafter=trained.
TRAINED = ("eagle3", "eagle3_tree", "medusa", "medusa_tree", "adapter", "adapter_tree", "stream")
ROW = {"question_id": 1, "turns": ["x"]}
# What each acceptance rule is called here.
RULES = {name.lower(): getattr(specdec, name) for name in ("Block", "Coupled", "Match", "Ratio", "Typical")}


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def verifier(tiny_model_dir: Path) -> FullVerifier:
    return FullVerifier(tiny_model_dir, dtype="float32", device="cpu")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """One line that every kind of data can read."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**dict.fromkeys(("prompt", "question", "category", "task_id"), "x"), **ROW}))
    return file


def composed(group: str, option: str, rows: Path, tiny_model_dir: Path, tiny_heads: dict[str, Path]) -> DictConfig:
    """The whole configuration with one option chosen and everything set that it leaves to the user."""
    overrides = [f"{group}={option}", f"target={tiny_model_dir}", "device=cpu", "dtype=float32"]
    if (group == "data" and option != "demo") or option == "spec_bench":
        overrides.append(f"data.path={rows}")
    if option.startswith("model"):
        overrides.append(f"drafter.model={tiny_model_dir}")
    heads = option.removesuffix("_tree")
    if heads in tiny_heads:
        overrides.append(f"drafter.weights={tiny_heads[heads]}")
    if option == "hybrid":
        overrides.append(f"drafter.second.weights={tiny_heads['eagle3']}")
    if option == "trained":  # none are shipped for the tiny target
        overrides += [f"drafter.{arm}.weights={tiny_heads[arm.removesuffix('_tree')]}" for arm in TRAINED]
    if option == "demo" and group != "data":
        overrides += [f"drafter.{part}.weights={tiny_heads['eagle3']}" for part in ("eagle3", "hybrid.second")]
    if option in ("blend", "mirror"):  # there are none for the tiny target
        overrides.append("forecast.exit.trained=smollm2-135m-instruct")
    if option.startswith("synthetic"):  # the others take gigabytes
        overrides.append("drafter.model=synthetic/tiny")
    return compose("config", overrides)


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=map("/".join, OPTIONS))
def test_composes_and_makes_its_parts(
    group: str,
    option: str,
    rows: Path,
    tiny_model_dir: Path,
    tiny_heads: dict[str, Path],
    verifier: FullVerifier,
) -> None:
    config = composed(group, option, rows, tiny_model_dir, tiny_heads)
    check(config)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    made = arms(config, option if group == "drafter" else "training_free", verifier)
    baselines = 0 if option == "simulated" else 1
    assert made[0].name == "plain" and len(made) == 1 + baselines + expected_drafters(group, option)
    assert decoding_of(config).max_new_tokens > 0
    assert all(isinstance(prompt, data.Prompt) for prompt in instantiate(config.data, _convert_="all"))
    if group in ("verifier", "logger"):
        assert instantiate(config[group]) is not None


def expected_drafters(group: str, option: str) -> int:
    if option == "mirror":
        return 1
    if option == "demo" and group != "data":
        return 4
    if group != "drafter" or option == "training_free":
        return 3
    if option == "trained":
        return len(TRAINED)
    return 0 if option == "plain" else 1


def targets(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a configuration that is made from one."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"], {key: value for key, value in node.items() if key != "_target_"}
        for child in node.values():
            yield from targets(child)


@pytest.mark.parametrize(("group", "option"), MADE, ids=map("/".join, MADE))
def test_names_every_argument_and_its_default(group: str, option: str) -> None:
    """Who reads a file sees all there is to set, and what Python users get without it."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"), resolve=False)
    for name, given in targets(node):
        parameters = inspect.signature(get_object(name)).parameters
        assert given.keys() <= parameters.keys()
        in_memory = {"tokenizer", "corpus", "translator"}  # objects that only Python users can pass
        assert parameters.keys() - given.keys() <= in_memory, f"{group}/{option} does not show all arguments"
        for key, value in given.items():
            default = parameters[key].default
            chosen = option.endswith("_tree") or str(value).startswith("${") or group == "logger"
            chosen |= option == "hybrid"  # of its parts it asks something else than they do alone
            chosen |= name == "specdec.planner.Costs"  # what was measured: nothing is the default
            chosen |= given.get("trained") == "${target}"  # then the layer is one that exits are trained for
            if chosen or default is inspect.Parameter.empty:
                continue
            same = value == default or (isinstance(value, dict) and instantiate(value) == default)
            assert same, f"{key}: {value} != {default}"


def test_every_drafter_and_rule_has_a_file() -> None:
    def made(group: str) -> set[str]:
        nodes = [OmegaConf.load(file) for file in (CONF / group).rglob("*.yaml")]
        return {node._target_ for node in nodes if "_target_" in node}

    assert made("drafter") == {f"drafters.{name}" for name in drafters.__all__}
    assert made("acceptance") == {f"specdec.{rule.__name__}" for rule in RULES.values()}


@pytest.mark.parametrize("name", RULES)
def test_rules_have_their_own_names(name: str) -> None:
    assert type(instantiate(compose("config", [f"acceptance={name}"]).acceptance)) is RULES[name]


def test_default_drafters_take_their_own_files() -> None:
    config = compose("config", ["drafter.ngram.length=8"])
    assert list(config.drafter) == ["ngram", "suffix", "early_exit"]
    assert config.drafter.ngram.length == 8 and config.drafter.ngram.max_ngram == 3
    assert config.drafter.suffix == OmegaConf.load(CONF / "drafter" / "suffix.yaml")


def test_experiments_can_be_overridden() -> None:
    config = compose("config", ["experiment=sampled", "sampling.temperature=1", "acceptance=match"])
    assert config.sampling.temperature == 1 and config.acceptance._target_ == "specdec.Match"
    smoke = compose("config", ["experiment=smoke"])
    assert (smoke.data.limit, smoke.max_new_tokens) == (2, 16)
    assert compose("config", ["experiment=spec_bench"]).max_new_tokens == 1024
    assert compose("config", ["experiment=sampled"]).acceptance._target_ == "specdec.Coupled"
    mirror = compose("config", ["experiment=mirror"])
    assert mirror.channel._target_ == "specdec.channel.Process"
    assert instantiate(mirror.forecast) == Blend(Exit(22, trained="smollm2-135m-instruct"))


def test_whole_command_of_the_help_composes() -> None:
    overrides = [
        "drafter=model",
        "drafter.model=m",
        "data=humaneval",
        "data.path=p",
        "sampling.temperature=1",
    ]
    config = compose("config", overrides)
    assert config.drafter.model == "m" and config.data.path == "p" and config.drafter.dtype == "auto"
    check(config)


def examples() -> list[tuple[str, str]]:
    """The name of the configuration and the line, for every example of the help pages."""
    found = []
    for page, name in (("specdec", "config"), ("bench", "bench"), ("train", "train")):
        lines = (CONF / f"hydra/help/{page}.yaml").read_text().splitlines()
        found += [(name, line.strip()) for line in lines if line.startswith("    specdec")]
    return found


@pytest.mark.parametrize(("name", "line"), examples())
def test_examples_of_the_help(name: str, line: str) -> None:
    words = line.split("   ")[0].replace("'", "").split()[1:]
    compose(name, [word for word in words if not word.startswith(("hydra.", "head="))])


def test_outputs_lie_by_date_and_time() -> None:
    config = compose("config", return_hydra_config=True)
    raw = OmegaConf.to_container(config.hydra.run, resolve=False)
    assert raw == {"dir": "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}"}
    assert config.hydra.job.chdir is False and config.hydra.output_subdir is None
