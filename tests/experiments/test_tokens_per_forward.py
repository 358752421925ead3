"""Tokens per forward are those of forwards that were counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import llama, random_prompt

from drafters.stream_head import StreamHead
from drafters.stream_model import StreamModel
from drafters.trainable import FrozenTarget
from experiments.tokens_per_forward import main, measured, paced, whole
from specdec import Sampling
from specdec.runtime import load
from specdec.trace import Round
from verifiers import FullVerifier


def test_tokens_are_shared_among_counted_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, forwards = FullVerifier(llama()), []
    plain = StreamModel._forward
    monkeypatch.setattr(
        StreamModel, "_forward", lambda self, *what: forwards.append(len(what)) or plain(self, *what)
    )
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 128}
    head = StreamHead(sizes, 32, layers=(1, 2, 3))
    for streams in (0, 2):
        drafter = paced(head, 3, streams)
        made, counts, draft = [], [], drafter.draft

        def counted(context, noise, draft=draft, made=made, counts=counts):
            before = len(forwards)
            made.append(draft(context, noise))
            counts.append(len(forwards) - before)
            return made[-1]

        drafter.draft = counted
        found = measured(verifier, drafter, [random_prompt(5, 1)], 30, Sampling(temperature=1.0))
        assert set(counts[: found["drafts"]]) == {3} and found["drafts"] > 5
        tokens = [int((draft.parents != -2).sum()) for draft in made[: found["drafts"]]]
        assert found["tokens_per_forward"] == pytest.approx(sum(tokens) / sum(counts[: found["drafts"]]))
        assert found["tokens_per_forward"] == 1 if streams == 0 else found["tokens_per_forward"] > 1


def test_drafts_that_were_cut_are_left_out() -> None:
    rounds = [Round(0, drafted, drafted, 0, committed) for drafted, committed in ((0, 1), (5, 3), (4, 2), (3, 4))]
    assert list(whole(rounds, 6, 10)) == rounds[1:2]


def test_the_command_writes_what_it_found(tiny_model_dir: Path, tmp_path: Path, capsys) -> None:
    network = load(tiny_model_dir, dtype="float32", device="cpu").model.network
    StreamHead.fresh(FrozenTarget(network)).save(tmp_path)
    asked = ["--target", str(tiny_model_dir), "--head", str(tmp_path), "--out", str(tmp_path / "found.json")]
    asked += ["--limit", "1", "--dtype", "float32", "--device", "cpu", "--new-tokens"]
    main([*asked, "20"])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [arm["streams"] for arm in found["arms"]] == [0, 1, 2, 3]
    assert found["arms"][0]["tokens_per_forward"] == 1
    assert "3 streams: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="raise --new-tokens"):
        main([*asked, "4"])
