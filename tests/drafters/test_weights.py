"""A trained head is found by its path, and by a short name where it is shipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from drafters import hydra, medusa, weights
from drafters.adapter_head import AdapterHead
from drafters.checkpoint import FILES, config_of, read, write
from drafters.dflash import DFlashHead
from drafters.eagle import EagleHead
from drafters.eagle3_head import Eagle3Head
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.mtp import MTPHead
from drafters.redrafter import RecurrentHead
from drafters.stream_head import StreamHead
from drafters.weights import located, shipped

NAME = "some-target/eagle3"
LOADS = [
    kind.load
    for kind in (
        AdapterHead,
        DFlashHead,
        Eagle3Head,
        EagleHead,
        HydraHeads,
        MTPHead,
        MedusaHeads,
        RecurrentHead,
        StreamHead,
    )
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two heads for one target where heads are shipped, and an empty directory to work in."""
    place = tmp_path / "shipped"
    for number, name in enumerate((NAME, "some-target/adapter")):
        write(place / name, FILES[0], {"number": torch.tensor(number)}, {"number": number})
    (place / "some-target" / "README.md").write_text("no head")
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(weights, "SHIPPED", place)
    monkeypatch.chdir(tmp_path / "work")
    return place


def number(name: str | Path) -> tuple[int, int]:
    """What the tensors and the configuration of a head say."""
    return int(read(name, FILES).left["number"]), config_of(name)["number"]


@pytest.mark.parametrize("name", [NAME, Path(NAME), "Some-Target/EAGLE3", f"{NAME}/"])
def test_a_short_name_is_the_shipped_folder(name: str | Path, folder: Path) -> None:
    assert located(name) == folder / NAME
    assert number(name) == (0, 0) and number("some-target/adapter") == (1, 1)


def test_shipped_heads_are_listed_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped() == {name: folder / name for name in ("some-target/adapter", NAME)}
    write(folder / "Some/Target" / "eagle3", FILES[0], {"number": torch.tensor(2)}, {"number": 2})
    assert list(shipped()) == ["some/target/eagle3", "some-target/adapter", NAME]
    assert number("Some/Target/eagle3") == (2, 2)
    monkeypatch.setattr(weights, "SHIPPED", folder / "nowhere")
    assert shipped() == {}


def test_a_path_that_exists_comes_first(folder: Path) -> None:
    write(NAME, FILES[0], {"number": torch.tensor(7)}, {"number": 7})
    assert number(NAME) == (7, 7) and number("some-target/adapter") == (1, 1)
    (Path(NAME) / FILES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"no weights at {NAME}: "):
        read(NAME, FILES)


@pytest.mark.parametrize(
    "name", ["some-target", "eagle3", "some-target/medusa", "../shipped/x", "some-target/README.md"]
)
def test_what_is_nowhere_is_named_beside_what_there_is(name: str, folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read(name, FILES)
    assert str(error.value) == (
        f"there are no weights at {name}: name a directory or file of a trained head, or one that is shipped: "
        "some-target/adapter, some-target/eagle3"
    )
    with pytest.raises(FileNotFoundError, match="no weights at"):
        config_of(name)


def test_nothing_is_listed_where_nothing_is_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SHIPPED", folder / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"no weights at {NAME}: .* of a trained head$"):
        read(NAME, FILES)


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__self__.__name__)
def test_every_head_is_looked_for_there(load: Callable[[str], object], folder: Path) -> None:
    """Files of every name are damaged: which one was read, its error says."""
    for name in {name for files in (FILES, hydra.FILES, medusa.FILES) for name in files}:
        (folder / NAME / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=f"^{folder / NAME}/.* is damaged"):
        load(NAME)
