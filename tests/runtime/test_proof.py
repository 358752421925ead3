"""What is not proved right is not run by our attention kernel."""

from __future__ import annotations

import logging

import pytest
import torch
from families import FAMILIES

from specdec.runtime import proof
from verifiers import FullVerifier


@pytest.mark.parametrize("kind", FAMILIES)
def test_replayed_and_direct_rounds_give_the_same_logits(kind: str) -> None:
    model = FullVerifier(FAMILIES[kind]()).model
    assert proof.distance(model) < 1e-5
    assert model.memory.tokens.shape == (0, 0), "nothing is left behind"


def brief(monkeypatch: pytest.MonkeyPatch, gap: float | Exception) -> bool:
    """Whether our attention is trusted after a proof with this outcome."""

    def distance(_: object) -> float:
        if isinstance(gap, Exception):
            raise gap
        return gap

    monkeypatch.setattr(proof, "distance", distance)
    model = FullVerifier(FAMILIES["gpt2"]()).model
    model.network.brief = True
    proof.prove(model)
    return model.network.brief


def test_what_is_right_is_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert brief(monkeypatch, 1e-6) and not caplog.records


@pytest.mark.parametrize(
    ("gap", "said"),
    [(0.5, "differ by 0.5"), (float("nan"), "differ by nan"), (TypeError("no such tile\nmore"), "no such tile")],
)
def test_what_is_wrong_or_fails_is_given_up_and_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gap: float | Exception, said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert not brief(monkeypatch, gap)
    (record,) = caplog.records
    assert "GPT2LMHeadModel runs with PyTorch's attention" in record.message and said in record.message


def test_a_proof_tells_wrong_from_right(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tokens in the wrong order in forwards whose shapes do not depend on the rows.
    model = FullVerifier(FAMILIES["llama"]()).model
    feed = model._feed

    def flipped(tokens_BS: torch.Tensor, held_B: torch.Tensor, *others: int) -> object:
        what = feed(tokens_BS, held_B, *others)
        return what if not model._static else type(what)(**{**vars(what), "tokens": what.tokens.flip(1)})

    monkeypatch.setattr(model, "_feed", flipped)
    assert proof.distance(model) > 1e-2
