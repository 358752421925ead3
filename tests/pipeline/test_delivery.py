"""What is sent to a drafter's process: the target's weights go to who borrows from it, and to nobody else."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

import drafters
import specdec
from drafters import (
    AdapterDrafter,
    Eagle3Drafter,
    EarlyExitDrafter,
    MedusaDrafter,
    ModelDrafter,
    NgramDrafter,
    NullDrafter,
)
from drafters.adapter_head import AdapterHead
from drafters.eagle3_head import Eagle3Head
from drafters.medusa import MedusaHeads
from experiments.ranks import worker
from specdec.channel import Inline, Process
from specdec.channel.child import Delivery
from specdec.channel.sides import borrows
from specdec.forecast import DraftTopK
from verifiers import FullVerifier

ROWS = [[1, 2, 3, 1, 2], [9]]
BORROW = {
    *("AdapterDrafter", "DFlashDrafter", "Eagle3Drafter", "EagleDrafter", "EarlyExitDrafter", "HydraDrafter"),
    *("MTPDrafter", "MedusaDrafter", "ReDrafter", "StreamDrafter"),
    "HybridDrafter",  # before it is made nobody knows its parts
}


class Noted(Delivery):
    """A delivery that notes how many bytes each parcel has."""

    sizes: list[int]

    def _hand(self, parcel):
        self.sizes.append(len(pickle.dumps(parcel)))
        super()._hand(parcel)


@pytest.fixture
def sizes(monkeypatch):
    monkeypatch.setattr(Noted, "sizes", [], raising=False)
    monkeypatch.setattr("specdec.channel.process.Delivery", Noted)
    return Noted.sizes


def weights(model):
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def play(target, drafter, channel):
    return specdec.generate(FullVerifier(target), drafter, ROWS, 16, forecast=DraftTopK(2), channel=channel)


def by_process(target, drafter):
    channel = Process(patience=60)
    result = play(target, drafter, channel)
    channel.close()
    assert not result.metrics.faults
    return result


@pytest.mark.parametrize("make", [NgramDrafter, partial(partial, NgramDrafter)], ids=["drafter", "function"])
def test_the_target_stays_where_it_is(tiny_target, sizes, make):
    by_process(tiny_target, make())
    assert len(sizes) == 1 and sizes[0] < weights(tiny_target) / 2


def test_a_model_of_its_own_is_all_that_is_sent(tiny_target, tiny_draft, sizes):
    by_process(tiny_target, ModelDrafter(copy.deepcopy(tiny_draft), length=2))
    assert len(sizes) == 1 and weights(tiny_draft) < sizes[0] < 1.5 * weights(tiny_draft)


def eagle3():
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 128}
    return Eagle3Drafter(Eagle3Head(sizes, 32, layers=(1, 2, 3)), length=3)


def medusa():
    torch.manual_seed(3)
    heads = MedusaHeads(32, 128, heads=3).to_empty(device="cpu")
    for weight in heads.parameters():
        torch.nn.init.normal_(weight)
    return MedusaDrafter(heads)


def adapter():
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    more = {"vocab_size": 128, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    return AdapterDrafter(AdapterHead({**sizes, **more, "exit_layer": 2}), length=3)


@pytest.mark.parametrize(
    "make",
    [eagle3, medusa, adapter, partial(EarlyExitDrafter, length=3), partial(partial, EarlyExitDrafter, length=3)],
    ids=["eagle3", "medusa", "adapter", "early exit", "function"],
)
def test_who_borrows_is_sent_the_target(tiny_target, sizes, make):
    result = by_process(tiny_target, make())
    assert len(sizes) == 2 and sizes[1] > weights(tiny_target)
    made = make()
    alone = play(tiny_target, made() if isinstance(made, partial) else made, Inline())
    plain = play(tiny_target, NullDrafter(), Inline())
    for row in (0, 1):
        assert result.row(row) == alone.row(row) == plain.row(row)
    assert result.metrics.mean_accepted_tokens == alone.metrics.mean_accepted_tokens
    assert [entry.hit for entry in result.trace.handovers] == [entry.hit for entry in alone.trace.handovers]


@pytest.mark.parametrize("name", drafters.__all__)
def test_who_borrows_says_so(name):
    assert borrows(getattr(drafters, name)) == (name in BORROW)


@pytest.mark.parametrize("name", ["EarlyExitDrafter", "NgramDrafter"])
def test_under_torchrun_the_target_is_loaded_for_who_borrows(tiny_target, name, monkeypatch):
    monkeypatch.setattr("experiments.ranks.load_tokenizer", lambda source: None)
    loaded = []

    def target():
        loaded.append(FullVerifier(tiny_target))
        return loaded[0]

    forecast = {"_target_": "specdec.forecast.DraftTopK"}
    config = OmegaConf.create({"device": "cpu", "target": None, "forecast": forecast})
    worker(config, OmegaConf.create({"_target_": f"drafters.{name}"}), target)
    assert len(loaded) == (name in BORROW)
