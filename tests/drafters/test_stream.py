"""A head with streams drafts what it drafts one token at a time, in fewer forwards."""

from __future__ import annotations

import copy

import pytest
import torch
from families import llama, plain_greedy, random_prompt
from safetensors.torch import load_file, save_file
from test_eagle3 import KNOWN, LAYERS, SETTINGS, normed, published

import specdec
from drafters import Eagle3Drafter, StreamDrafter
from drafters.eagle3_head import Eagle3Head
from drafters.feature import FeatureNetwork
from drafters.stream_head import StreamHead
from drafters.stream_model import StreamModel
from drafters.trainable import FrozenTarget
from specdec import Advice, Block, Coupled, Match, Ratio, Sampling, Tap, tree
from specdec.forecast import AllAccepted, DraftTopK
from verifiers import FullVerifier

ROWS = [random_prompt(9, 1), random_prompt(1, 2), random_prompt(5, 3)]
WARM = Sampling(temperature=1.0)
RULES = [
    (Sampling(), Ratio()),
    (WARM, Ratio()),
    (WARM, Block()),
    (WARM, Match()),
    (WARM, Coupled()),
    (Sampling(temperature=0.8, repetition_penalty=1.3), Ratio()),
    (Sampling(repetition_penalty=1.3), Ratio()),
]


@pytest.fixture(scope="module")
def target():
    return llama()


@pytest.fixture(scope="module")
def head():
    """Of random weights. Its layer adds little to a feature, so that its streams are right now and then."""
    torch.manual_seed(3)
    made = StreamHead(SETTINGS, 32, KNOWN, LAYERS, embeds=True)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.add_(0.2 * torch.randn_like(weight))
            if "o_proj" in name or "down_proj" in name:
                weight.mul_(0.7)
    return made


class OneToken(StreamDrafter):
    """The same head in the rollout of all other models, which knows of no streams."""

    def __init__(self, head, length):
        super().__init__(head, length, streams=0)

    def draft(self, context, noise):
        self._model.see(context.advice)
        return self.shape.draft(self._model, context, noise, self._model.vocab_size)

    def resume(self, context, window, own_BMV, noise):
        return self.shape.resume(self._model, context, window, own_BMV, noise, self._model.vocab_size)

    def branch(self, context, window, outcomes, noise):
        return self.shape.branch(self._model, context, window, outcomes, noise, self._model.vocab_size)


def noting(drafter):
    """Notes every draft that a drafter makes, by how it was asked, and the widths of its forwards."""
    made, widths = [], []

    def note(name, asked):
        def noted(*what):
            made.append((name, asked(*what)))
            return made[-1][1]

        setattr(drafter, name, noted)

    class Model(StreamModel):
        def _forward(self, what, *others):
            widths.append(what.tokens.shape[1])
            return super()._forward(what, *others)

    for name in ("draft", "resume", "branch"):
        note(name, getattr(drafter, name))
    if isinstance(drafter, StreamDrafter):
        drafter.kind = Model
    return made, widths


@pytest.mark.parametrize(
    ("sampling", "rule", "forecast", "candidates"),
    [(*rule, None, 1 + 2 * (number % 2)) for number, rule in enumerate(RULES)]
    + [(*rule, DraftTopK(2), 2) for rule in RULES[:3]]
    + [(*RULES[5], AllAccepted(), 1)],
)
def test_drafts_are_those_of_one_token_forwards(target, head, sampling, rule, forecast, candidates):
    twin, streaming = OneToken(head, 6), StreamDrafter(head, 6, steps=None, candidates=candidates)
    (expected, slow), (made, quick) = noting(twin), noting(streaming)
    for drafter in (twin, streaming):
        result = specdec.generate(
            FullVerifier(target), drafter, ROWS, 16, sampling=sampling, acceptance=rule, seed=3, forecast=forecast
        )
        assert not result.metrics.faults
    assert len(made) > 6 and [name for name, _ in made] == [name for name, _ in expected]
    for (_, mine), (_, theirs) in zip(made, expected, strict=True):
        assert torch.equal(mine.parents, theirs.parents) and torch.equal(mine.tokens, theirs.tokens)
        assert mine.size == 0 or (mine.laws is None) == (theirs.laws is None) == (sampling.greedy or rule.coupled)
        assert mine.laws is None or torch.allclose(mine.laws, theirs.laws, atol=1e-5)
    assert len(quick) < 0.9 * len(slow)
    if sampling == Sampling():
        assert [result.row(b) for b in range(3)] == [plain_greedy(target, row, 16) for row in ROWS]


class Both(StreamDrafter):
    """Drafts beside its twin, each draft of which is at least as long."""

    def begin(self, target, seq):
        super().begin(target, seq)
        self.twin, self.counts = OneToken(self.head, self.pace.length), []
        self.twin.begin(target, seq)

    def draft(self, context, noise):
        mine, theirs = super().draft(context, noise), self.twin.draft(context, noise)
        count_B = (mine.parents != tree.PAD).sum(1)
        for row, count in enumerate(count_B.tolist()):
            assert mine.parents[row, :count].tolist() == list(range(-1, count - 1))
            assert torch.equal(mine.tokens[row, :count], theirs.tokens[row, :count])
            assert mine.laws is None or torch.allclose(mine.laws[row, :count], theirs.laws[row, :count], atol=1e-5)
            self.counts.append((count, min(self.pace.length, int(context.room.max()) - 1)))
        return mine


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_with_few_forwards_a_draft_is_a_beginning(target, head, steps, sampling):
    drafter = Both(head, 7, steps)
    assert not specdec.generate(FullVerifier(target), drafter, ROWS, 24, sampling=sampling).metrics.faults
    for count, room in drafter.counts:
        assert min(steps, room) <= count <= min(drafter.size, room)
    assert steps == 1 or {count for count, _ in drafter.counts} >= {steps, steps + 2}, "some guesses are right"


@torch.no_grad()
def tapped(target, row):
    """The states that the head reads of a row, by tap, and the target's logits."""
    last = []
    hook = target.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
    answer = target(torch.tensor([row]), output_hidden_states=True, use_cache=False)
    hook.remove()
    return {Tap(layer): last[0] if layer == 4 else answer.hidden_states[layer] for layer in LAYERS}, answer.logits[
        0
    ]


@torch.no_grad()
def reference(head, states, row, drafted, stream):
    """[D] logits of a stream, 0 the main one, at the last of some tokens drafted behind a row: no cache, no tree.

    Streams stand behind the pairs as if they were pairs.
    """
    weights, end = head.state_dict(), len(row) - 1
    true = torch.cat([states[Tap(layer)][0, :end] for layer in LAYERS], -1) @ weights["fc.weight"].T
    tokens = [*row[1:], *drafted]
    lags = [true[-1], *(true[-1] + lag for lag in weights["lags.weight"])]
    behind = [lags[min(lag, 6)] for lag in range(len(drafted) + 1)]
    held = behind[1:] + [behind[-1] + weights["streams.weight"][j] for j in range(stream)]
    features = torch.cat([true, *(feature[None] for feature in held)])
    own = published(weights, weights["embed_tokens.weight"][tokens + tokens[-1:] * stream], features)
    return normed(own[-1], weights["norm.weight"]) @ weights["lm_head.weight"].T


def test_laws_are_those_of_a_forward_without_cache_or_tree(target, head):
    seen = []

    class Watched(StreamDrafter):
        def draft(self, context, noise):
            seen.append((context.row(0), super().draft(context, noise)))
            return seen[-1][1]

    specdec.generate(FullVerifier(target), Watched(head, 5), random_prompt(7, 2), 12, sampling=WARM)
    assert len(seen) > 5
    for row, draft in seen:
        states, _ = tapped(target, row)
        for node in range(int((draft.parents != tree.PAD).sum())):
            expected = reference(head, states, row, draft.tokens[0, :node].tolist(), 0).softmax(-1)
            assert torch.allclose(draft.laws[0, node, KNOWN], expected, atol=1e-5)


def test_streams_say_what_a_forward_without_cache_or_tree_says(target, head):
    row, drafted = random_prompt(7, 2), random_prompt(3, 8)
    states, _ = tapped(target, row)
    model = StreamModel(FeatureNetwork(head, FullVerifier(target).model.network))
    model.begin(1, 12)
    model.see(Advice(states, torch.arange(7)[None]))
    tokens, parents = torch.tensor([drafted]), torch.tensor([[-1, 3, 4]])  # behind three streams of the root
    at_root = model.open(torch.tensor([row]), torch.tensor([7]), 3, None)[0, :, KNOWN]
    behind = model.read(tokens, parents, 3)[0, :, :, KNOWN]
    for stream in range(4):
        assert torch.allclose(at_root[stream], reference(head, states, row, [], stream), atol=1e-4)
        for place in range(3):
            expected = reference(head, states, row, drafted[: place + 1], stream)
            assert torch.allclose(behind[stream, place], expected, atol=1e-4)


def test_losses_are_of_what_drafting_says(target, head):
    """Step by step as EAGLE-3's, and of each stream the cross-entropy of the token that it should have said."""
    row = random_prompt(12, 5)
    (states, logits), tokens = tapped(target, row), torch.tensor([row])
    wanted = torch.zeros(1, 12, dtype=torch.bool)
    wanted[0, 4:11] = True
    with torch.no_grad():
        losses = head.losses(states, tokens, wanted, FullVerifier(target).model.network)
    assert list(losses) == [*(f"step {step}" for step in range(1, 8)), "stream 1", "stream 2", "stream 3"]
    expected = dict.fromkeys(losses, 0.0)
    for step in range(7):
        terms = {name: [] for name in (f"step {step + 1}", "stream 1", "stream 2", "stream 3")}
        for place in range(4, 11 - step):  # where the last true pair is
            drafted = row[place + 2 : place + 2 + step]
            said = [reference(head, states, row[: place + 2], drafted, j).log_softmax(-1) for j in range(4)]
            judge = place + step + 1  # whose law is to be learnt
            if judge < 11 and logits[judge].argmax() in KNOWN:
                terms[f"step {step + 1}"].append(-(logits[judge][KNOWN].softmax(-1) * said[0]).sum())
            for j in (1, 2, 3):
                if judge + j < 11 and row[judge + j + 1] in KNOWN:
                    terms[f"stream {j}"].append(-said[j][KNOWN.tolist().index(row[judge + j + 1])])
        for name, found in terms.items():
            weight = 0.8**step * (0.1 if name.startswith("stream") else 1)
            expected[name] += weight * torch.stack(found).mean().item() if found else 0
    assert losses == pytest.approx(expected, abs=1e-4)


def test_streams_alone_can_be_trained(target, head):
    made, row = copy.deepcopy(head), random_prompt(12, 5)
    made.only_streams()
    states, _ = tapped(target, row)
    wanted = torch.ones(1, 12, dtype=torch.bool)
    loss = made.losses(states, torch.tensor([row]), wanted, FullVerifier(target).model.network)
    said = sum(loss[f"step {step}"] for step in range(1, 8))
    (moved,) = torch.autograd.grad(said, made.streams.weight, retain_graph=True)
    assert not moved.any(), "the main stream does not see the others"
    sum(loss.values()).backward()
    taught = {name for name, weight in made.named_parameters() if weight.grad is not None}
    assert taught == {"streams.weight"} and (made.streams.weight.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", [Eagle3Head, StreamHead])
def test_new_streams_learn_on_a_trained_head_that_stays(target, kind, tmp_path):
    torch.manual_seed(6)
    base, frozen = kind(SETTINGS, 32, KNOWN, LAYERS, embeds=True), FrozenTarget(FullVerifier(target).model.network)
    base.to(torch.bfloat16).save(tmp_path)
    made = StreamHead.fresh(frozen, streams=2, base=tmp_path)
    assert made.count == 2 and {weight.dtype for weight in made.parameters()} == {torch.float32}
    assert [name for name, weight in made.named_parameters() if weight.requires_grad] == ["streams.weight"]
    for name, weight in base.state_dict().items():
        assert name == "streams.weight" or torch.equal(made.state_dict()[name], weight.to(made.fc.weight.dtype))
    kind(SETTINGS, 48, KNOWN, LAYERS, embeds=True).save(tmp_path)
    with pytest.raises(ValueError, match="hidden size of 48, but this one has 32"):
        StreamHead.fresh(frozen, base=tmp_path)


def test_a_base_goes_on_learning_with_a_part_of_its_vocabulary(target, tmp_path):
    frozen = FrozenTarget(FullVerifier(target).model.network)
    base = Eagle3Head(SETTINGS, 32, None, LAYERS, embeds=True)
    base.save(tmp_path)
    made = StreamHead.fresh(frozen, 5, streams=2, base=tmp_path, frozen=False)
    assert made.ids.tolist() == frozen.frequent(5).tolist() and not made.lags.weight.any()
    assert all(weight.requires_grad for weight in made.parameters())
    assert torch.equal(made.lm_head.weight, base.lm_head.weight[made.ids])
    assert torch.equal(made.midlayer.mlp.up_proj.weight, base.midlayer.mlp.up_proj.weight)
    Eagle3Head(SETTINGS, 32, KNOWN, LAYERS, embeds=True).save(tmp_path)
    counted = FrozenTarget(FullVerifier(target).model.network, torch.arange(SETTINGS["vocab_size"]))
    made = StreamHead.fresh(counted, 3, base=tmp_path, frozen=False)
    assert made.ids.tolist() == KNOWN.sort().values[-3:].tolist(), "the most frequent that the base knows"


def test_what_is_saved_loads_to_the_same_drafts(target, head, tmp_path):
    head.save(tmp_path / "head", target="tiny")
    again = StreamHead.load(tmp_path / "head")
    assert again.state_dict().keys() == head.state_dict().keys() and again.ids.tolist() == KNOWN.tolist()
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in head.state_dict().items())
    again.save(tmp_path / "again", target="tiny")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "head" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    options = {"max_new_tokens": 16, "sampling": WARM, "seed": 1}
    expected, result = (
        specdec.generate(FullVerifier(target), StreamDrafter(weights), ROWS, **options)
        for weights in (head, tmp_path / "head")
    )
    assert expected.trace.rounds and torch.equal(result.tokens, expected.tokens)


def test_every_tensor_is_accounted_for(head, tmp_path):
    head.save(tmp_path)
    with pytest.raises(ValueError, match=r"belong nowhere .lags.weight, streams.weight"):
        Eagle3Head.load(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for changes, said in (
        ({"streams.weight": None}, "lacks streams.weight"),
        ({"streams.weight": torch.zeros(2, 24)}, r"streams is 3 in the config.json .* but 2 by its tensors"),
        (
            {"streams.weight": torch.zeros(3, 7)},
            r"streams.weight in .* has shape \[3, 7\] where \[3, 24\] is needed",
        ),
        ({"more.weight": torch.zeros(2)}, "belong nowhere .more.weight"),
    ):
        changed = {name: weight for name, weight in {**weights, **changes}.items() if weight is not None}
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=said):
            StreamDrafter(tmp_path)


def test_a_trained_head_gets_streams(target):
    """What it says behind committed tokens is unchanged."""
    torch.manual_seed(5)
    plain = Eagle3Head(SETTINGS, 32, KNOWN, LAYERS, embeds=True, norm_before_residual=True)
    drafts = []
    for drafter in (Eagle3Drafter(plain, 1), StreamDrafter(StreamHead.on(plain, 2), 1)):
        drafts.append(noting(drafter)[0])
        specdec.generate(FullVerifier(target), drafter, ROWS, 16, sampling=WARM)
    assert len(drafts[0]) == len(drafts[1]) > 6
    for (_, mine), (_, theirs) in zip(*drafts, strict=True):
        assert torch.equal(mine.tokens, theirs.tokens) and mine.tokens.shape[1] == mine.size
        assert mine.size == 0 or torch.allclose(mine.laws, theirs.laws, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 0}, "length must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"streams": 4}, "streams must be from 0 to 3 for this head, not 4"),
        ({"streams": -1}, "streams must be from 0 to 3"),
        ({"candidates": 0}, f"candidates must be from 1 to {len(KNOWN)} for this head, not 0"),
        ({"candidates": len(KNOWN) + 1}, f"candidates must be from 1 to {len(KNOWN)}"),
        ({"candidates": 1.5}, "candidates must be"),
    ],
)
def test_a_pace_that_cannot_be_is_refused(head, options, said):
    with pytest.raises(ValueError, match=said):
        StreamDrafter(head, **options)


def test_a_head_without_streams_is_refused():
    with pytest.raises(ValueError, match="streams must be at least 1, not 0"):
        StreamHead(SETTINGS, 32, streams=0)
