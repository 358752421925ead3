"""The parts of a training: what a head sees of the target, what it learns from and when, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, LAYERS, llama, plain_logits
from torch import nn
from torch.nn.functional import pad

from drafters.adapter_head import AdapterHead
from drafters.eagle3_head import Eagle3Head
from drafters.medusa import MedusaHeads
from drafters.stream_head import StreamHead
from drafters.trainable import FrozenTarget, taps_of
from experiments import data, reply_store
from experiments.checkpoint import Checkpoints
from experiments.replies import Text
from experiments.reply_store import ReplyStore
from experiments.requests import own, requests
from experiments.schedule import rate_share
from experiments.train_data import Batch, Order, learnable
from experiments.writing import Portion, Writing, portions
from specdec import Sampling, Tap
from specdec.runtime import load
from specdec.runtime.huggingface import Network
from verifiers import FullVerifier

CPU = torch.device("cpu")
TEXTS = [Text((3, 1, 4, 1, 5, 9, 2, 6), 5), Text((5, 3, 5), 1), Text((8, 9, 7, 9, 3), 2)]


@pytest.mark.parametrize("family", ["llama", "gemma3-hybrid", "gpt2"])
def test_states_are_those_of_a_forward_without_cache_or_padding(family: str) -> None:
    module = FAMILIES[family]()
    batch, taps = Batch.of(TEXTS, CPU), (Tap(0), Tap(2), Tap(LAYERS))
    states = batch.states(load(module).model, taps)
    for row, text in enumerate(TEXTS):
        size = len(text.tokens)
        with torch.no_grad():
            plain = module(input_ids=torch.tensor([text.tokens]), output_hidden_states=True).hidden_states
        for tap in taps[:-1]:
            torch.testing.assert_close(states[tap][row, :size], plain[tap.layer][0], rtol=1e-4, atol=1e-4)
        logits = FrozenTarget(Network(module)).read_out(states[Tap(LAYERS)][row, :size])
        torch.testing.assert_close(logits, plain_logits(module, list(text.tokens)), rtol=1e-3, atol=1e-3)
        assert all(not state[row, size:].any() for state in states.values())


@pytest.mark.parametrize("make", [Eagle3Head.fresh, StreamHead.fresh, MedusaHeads.fresh, AdapterHead.fresh])
def test_what_pads_a_batch_changes_nothing(make: Callable[..., nn.Module]) -> None:
    """On a GPU slots are a multiple of something."""
    torch.manual_seed(0)
    model = load(llama(max_position_embeddings=10).requires_grad_(False)).model
    target, batch = FrozenTarget(model.network), Batch.of(TEXTS, CPU)
    wider = replace(batch, tokens=pad(batch.tokens, (0, 8)), wanted=pad(batch.wanted, (0, 8)))
    head: Any = make(target=target).float()
    taps = taps_of(head, target)
    few, many = (
        head.losses(some.states(model, taps), some.tokens, some.wanted, target) for some in (batch, wider)
    )
    assert few.keys() == many.keys() and sum(few.values()) > 0
    for name, loss in few.items():
        torch.testing.assert_close(many[name], loss, rtol=1e-4, atol=1e-5)


def test_wanted_are_the_places_that_decided_the_reply() -> None:
    wanted_BS = Batch.of(TEXTS, CPU).wanted
    assert [row.nonzero().flatten().tolist() for row in wanted_BS] == [[4, 5, 6], [0, 1], [1, 2, 3]]


def test_gradients_go_through_the_target_and_leave_it_as_it_is() -> None:
    module = llama().requires_grad_(False)
    target = FrozenTarget(Network(module))
    assert (target.depth, target.vocab_size) == (LAYERS, 128)
    state = torch.randn(2, 3, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = target.read_out(state)
    assert logits.dtype == torch.float32 and logits.shape == (2, 3, 128)
    (mine,) = torch.autograd.grad(logits.square().sum(), state)
    (plain,) = torch.autograd.grad(module.lm_head(module.model.norm(state)).square().sum(), state)
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)
    tokens = torch.tensor([[4, 2]])
    assert torch.equal(target.embed(tokens), module.model.embed_tokens.weight[tokens])


class TestOrder:
    def test_every_epoch_has_every_row_once_in_another_order(self) -> None:
        order = Order(tuple(range(10, 57)), rows=4, seed=3)
        epochs = [[order.batch(12 * epoch + n) for n in range(order.per_epoch)] for epoch in range(3)]
        assert order.per_epoch == 12
        assert all(sorted(row for batch in epoch for row in batch) == list(range(47)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]

    def test_it_depends_on_the_seed_alone(self) -> None:
        first, again, other = (Order(tuple(range(40)), 4, seed) for seed in (3, 3, 4))
        assert [first.batch(n) for n in range(25)] == [again.batch(n) for n in range(25)]
        assert [first.batch(n) for n in range(25)] != [other.batch(n) for n in range(25)]

    def test_rows_of_a_batch_are_of_like_length(self) -> None:
        order = Order(tuple((7 * n) % 100 for n in range(100)), 4, 0)
        found = [[order.sizes[row] for row in order.batch(n)] for n in range(25)]
        assert max(max(sizes) - min(sizes) for sizes in found) == 3


def test_replies_of_one_token_teach_nothing() -> None:
    assert learnable([Text((1, 2, 3), 2), Text((1, 2, 3), 1)]) == [Text((1, 2, 3), 1)]


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_rate_rises_then_falls_to_zero(decay: str) -> None:
    rates = [rate_share(step / 1000, 0.1, decay) for step in range(1001)]
    assert rates[0] == 0 and rates[50] == pytest.approx(0.5, abs=0.05) and rates[1000] == pytest.approx(0)
    assert rates.index(max(rates)) == 100 and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[500] == pytest.approx(0.5)
    assert rate_share(0.0, 0.0, decay) == 1


class TestPrompts:
    def test_own_prompts_are_many_and_none_is_of_the_demo(self) -> None:
        said = [prompt.turns[0] for prompt in own(1)]
        assert len(said) == len(set(said)) > 900 and "{" not in "".join(said)
        assert not set(said) & {turn for prompt in data.demo() for turn in prompt.turns}
        assert said != [prompt.turns[0] for prompt in own(2)]

    def test_what_two_sources_ask_is_on_one_side_only(self, tmp_path: Path) -> None:
        files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        for file in files:
            file.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(40)))
        files[1].open("a").write("".join(json.dumps({"prompt": f"tell {n}"}) + "\n" for n in range(40)))
        asked = list(requests(files, 300, 1))
        sides = [{request.prompt.turns[0] for request in asked if request.held == held} for held in (True, False)]
        assert all(sides) and not sides[0] & sides[1]
        assert {f"say {n}" for n in range(40)} | {f"tell {n}" for n in range(40)} <= sides[0] | sides[1]

    def test_what_is_made_of_one_thing_is_on_one_side_only(self, tmp_path: Path) -> None:
        file, things = tmp_path / "a.jsonl", [f"thing {n % 20}" for n in range(100)]
        lines = [{"prompt": f"say {n} of {thing}", "source": thing} for n, thing in enumerate(things)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        asked = list(requests([file], 400, 1, [own(1)]))
        known = [request for request in asked if request.prompt.source]
        sides = [{request.prompt.source for request in known if request.held == held} for held in (True, False)]
        assert all(sides) and not sides[0] & sides[1]
        assert any(thing in sides[0] for thing in things) and any(str(name).endswith(".py") for name in sides[0])
        greedy = [request.greedy for request in asked if request.held]
        assert 0.2 < sum(greedy) / len(greedy) < 0.8

    def test_what_results_are_measured_on_is_left_out(self, tmp_path: Path) -> None:
        demo, file = data.demo(), tmp_path / "mine.jsonl"
        file.write_text("".join(json.dumps({"prompt": turn}) + "\n" for turn in (demo[0].turns[0], "mine")))
        assert demo[0].turns[0] not in {request.prompt.turns[0] for request in requests([file], 50, 1)}
        file.write_text(json.dumps({"prompt": demo[0].turns[0]}) + "\n")
        with pytest.raises(ValueError, match="no prompt is left of mine/1"):
            list(requests([file], 50, 1))


class TestReplies:
    @pytest.fixture
    def part(self, verifier: FullVerifier) -> Portion:
        asked = list(requests([], 30, 1, (own(1),)))
        return portions(verifier, asked, Writing(new_tokens=6, rows=3, longest=150))[0]

    @pytest.fixture
    def store(self, verifier: FullVerifier, tmp_path: Path) -> ReplyStore:
        return ReplyStore(tmp_path / "replies", verifier)

    def test_they_are_written_once(
        self, store: ReplyStore, part: Portion, verifier: FullVerifier, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert part not in store
        texts = store.texts(part)
        assert part in store and [text.tokens[: text.prompt] for text in texts] == list(part.prompts)
        monkeypatch.setattr(reply_store, "answered", None)
        assert ReplyStore(store.folder, verifier).texts(part) == texts

    def test_other_weights_prompts_or_laws_are_other_replies(self, store: ReplyStore, part: Portion) -> None:
        others = [Portion(part.prompts[1:], part.held, part.sampling, part.new_tokens, part.seed)]
        others += [Portion(part.prompts, part.held, Sampling(temperature=t), 6, s) for t, s in ((1, 0), (1, 1))]
        others += [Portion(part.prompts, part.held, part.sampling, part.new_tokens + 1, part.seed)]
        paths = {store.path(portion) for portion in (part, *others)}
        module = llama()
        with torch.no_grad():
            next(module.parameters())[0, 0] += 1
        paths |= {ReplyStore(store.folder, FullVerifier(made)).path(part) for made in (module, llama())}
        assert len(paths) == 7

    def test_a_damaged_file_is_written_anew(
        self, store: ReplyStore, part: Portion, caplog: pytest.LogCaptureFixture
    ) -> None:
        texts = store.texts(part)
        store.path(part).write_text('{"reply": [1')
        assert store.texts(part) == texts and "is damaged" in caplog.text

    def test_a_full_disk_costs_the_file_alone(
        self, store: ReplyStore, part: Portion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        assert len(store.texts(part)) == len(part.prompts) and "could not be kept" in caplog.text
        assert part not in store and not list(store.folder.iterdir())


def test_a_checkpoint_that_was_being_written_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"step": step, "weights": nn.Linear(2, 2).state_dict()})
    (tmp_path / "step-00000020.tmp").write_bytes(b"half")
    newest = checkpoints.newest()
    assert newest is not None and newest["step"] == 15 and len(checkpoints.files) == 2
    for file in checkpoints.files:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="start anew in another folder"):
        checkpoints.newest()
