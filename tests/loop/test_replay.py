"""Recorded rounds give the tokens of direct ones. Without a GPU a recording is a list of tensor operations."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field

import pytest
import torch
from families import FAMILIES
from torch.fx.experimental.proxy_tensor import make_fx

import specdec
from drafters import (
    AdapterDrafter,
    DFlashDrafter,
    Eagle3Drafter,
    EarlyExitDrafter,
    HydraDrafter,
    MedusaDrafter,
    ModelDrafter,
    MTPDrafter,
    NgramDrafter,
    NullDrafter,
    ReDrafter,
    StreamDrafter,
    SuffixDrafter,
)
from drafters.adapter_head import AdapterHead
from drafters.dflash import DFlashHead
from drafters.eagle3_head import Eagle3Head
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.mtp import MTPHead
from drafters.redrafter import RecurrentHead
from drafters.stream_head import StreamHead
from drafters.streaming import StreamingDrafter, Successors
from specdec import Block, Coupled, Match, Ratio, Sampling
from specdec.channel import Simulated, Thread
from specdec.forecast import DraftTopK
from specdec.planner import Costs, Curve
from specdec.runtime import load
from specdec.runtime.held import Held, flatten, rebuild
from specdec.runtime.replay import Recording, Replay, fill
from verifiers import FullVerifier

ROWS = [[[1, 2, 3, 1, 2], [9], [4] * 11], [[5, 6], [7, 8, 9], [1] * 4]]
WARM = Sampling(temperature=1.0)
KINDS = ["llama", "gemma3-hybrid"]
RULES = [(Sampling(), Ratio()), (WARM, Ratio()), (WARM, Block()), (WARM, Match()), (WARM, Coupled())]


def network(model):
    return load(model).model.network


STREAMS = Successors.of(torch.arange(128).roll(5), 3, "cpu")
DRAFTERS = {
    "plain": lambda model: NullDrafter(),
    "ngram": lambda model: NgramDrafter(length=4),
    "suffix": lambda model: SuffixDrafter(),
    "chain": lambda model: ModelDrafter(model, length=4),
    "streaming": lambda model: StreamingDrafter(load(model).model, STREAMS, length=4),
    "tree": lambda model: ModelDrafter(model, length=3, width=2, nodes=5),
    "static tree": lambda model: ModelDrafter(model, tree=[[0], [2], [0, 0], [0, 1], [2, 0], [0, 1, 0]]),
    "confident chain": lambda model: ModelDrafter(model, length=4, confidence=0.1),
    "early exit": lambda model: EarlyExitDrafter(exit_layer=1, length=3),
    "early exit tree": lambda model: EarlyExitDrafter(exit_layer=1, length=2, width=2),
}
# Drafters that read states of the target.
HEADS = {
    "eagle 3": lambda model: Eagle3Drafter(eagle3(model), length=3),
    "eagle 3 tree": lambda model: Eagle3Drafter(eagle3(model), length=3, width=2, nodes=5),
    "streams": lambda model: StreamDrafter(StreamHead.on(eagle3(model), 2), length=6, steps=3),
    "adapter": lambda model: AdapterDrafter(adapter(model), length=3),
    "adapter tree": lambda model: AdapterDrafter(adapter(model), length=3, width=2, nodes=5),
    "mtp": lambda model: MTPDrafter(mtp(model), length=3),
    "dflash": lambda model: DFlashDrafter(dflash(model)),
    "dflash tree": lambda model: DFlashDrafter(dflash(model), length=3, width=2, nodes=5),
    "medusa": lambda model: MedusaDrafter(MedusaHeads.fresh(network(model), heads=3)),
    "medusa tree": lambda model: MedusaDrafter(MedusaHeads.fresh(network(model), shared_head=True), 3, 2, 5),
    "hydra": lambda model: HydraDrafter(HydraHeads.fresh(network(model), heads=3)),
    "redrafter beams": lambda model: ReDrafter(RecurrentHead.fresh(network(model)), 3, 2, 5),
}


def sizes(model):
    """Of a draft head, whose weights are to be random."""
    torch.manual_seed(3)
    vocabulary = model.config.vocab_size
    return {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": vocabulary}


def eagle3(model):
    return Eagle3Head(sizes(model), 32, layers=(1, 2, 3))


def adapter(model):
    return AdapterHead({**sizes(model), "exit_layer": 1})


def mtp(model):
    return MTPHead(sizes(model))


def dflash(model):
    chosen = {"mask_token_id": 0, "target_layer_ids": [0, 2]}
    return DFlashHead({**sizes(model), "num_hidden_layers": 2, "block_size": 5, "dflash_config": chosen})


COSTS = Costs(target=Curve.flat("target", 5.0, 9), drafter=Curve.flat("drafter", 1.0, 9))


class Operations(Recording):
    """Stands in for a CUDA graph: as there, no Python runs when it is played again, and every number that Python
    read while it was recorded stays what it was."""

    def __init__(self, part, shape, leaves):
        self._inputs = [leaf.clone() for leaf in leaves]
        self._result_shape = None

        def run(*inputs):
            out = []
            self._result_shape = flatten(part(*rebuild(shape, iter(inputs))), out)
            return out

        self._operations = make_fx(run)(*self._inputs)

    def __call__(self, leaves):
        fill(self._inputs, leaves)
        return rebuild(self._result_shape, iter(self._operations(*self._inputs)))


def replaying(model, made):
    def record(*what):
        made.append(what)
        return Operations(*what)

    verifier = FullVerifier(model)
    verifier.replay = Replay(record)
    return verifier


def widen(verifier, width):
    """Give a verifier a width as if our attention ran here."""
    verifier.model.network.brief = True
    try:
        verifier.width = width
    finally:
        verifier.model.network.brief = False


@pytest.mark.parametrize(
    ("name", "kind", "sampling", "rule"),
    [
        (name, KINDS[(index + turn) % len(KINDS)], *rule)
        for index, name in enumerate(DRAFTERS)
        for turn, rule in enumerate(RULES)
        if name in ("chain", "tree", "early exit") or (index + turn) % 3 == 0
    ],
)
def test_tokens_and_rounds_are_those_of_direct_play(name, kind, sampling, rule):
    made = compared(FAMILIES[kind](), DRAFTERS[name], ROWS, sampling, rule)
    if name != "suffix":
        assert len(made) == 2, "a part was recorded twice, or never"


@pytest.mark.parametrize(
    ("name", "kind", "sampling", "rule"),
    [(name, KINDS[index % len(KINDS)], *RULES[index % len(RULES)]) for index, name in enumerate(HEADS)],
)
def test_heads_find_their_states_in_recordings(name, kind, sampling, rule):
    assert len(compared(FAMILIES[kind](), HEADS[name], ROWS, sampling, rule)) == 2


def test_states_of_other_numbers_of_rows_are_told_apart():
    batches = [ROWS[0], ROWS[1][:1], ROWS[1]]
    made = compared(FAMILIES["llama"](), HEADS["medusa"], batches, Sampling(), Ratio())
    assert len(made) == 6, "the target's cache moves with the number of rows: both parts are recorded anew"


def compared(model, make, batches, sampling, rule):
    """Play batches of rows directly and from recordings; what was recorded."""
    made = []
    verifier, drafter = replaying(model, made), make(model)
    options = {"max_new_tokens": 30, "sampling": sampling, "acceptance": rule}
    for seed, rows in enumerate(batches):  # later generations play what the first has recorded
        expected = specdec.generate(FullVerifier(model), make(model), rows, seed=seed, **options)
        result = specdec.generate(verifier, drafter, rows, seed=seed, **options)
        assert torch.equal(result.tokens, expected.tokens)
        assert not result.metrics.faults
        assert [(e.row, e.accepted, e.committed) for e in result.trace.rounds] == [
            (e.row, e.accepted, e.committed) for e in expected.trace.rounds
        ]
    return made


def test_another_prompt_length_and_a_longer_row_cost_no_token(tiny_llama):
    made = []
    verifier, drafter = replaying(tiny_llama, made), ModelDrafter(tiny_llama, length=3)
    for prompt, new in (([1, 2], 20), ([3] * 40, 20), ([1] * 30, 70), ([1, 2], 20)):
        expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), prompt, max_new_tokens=new)
        assert specdec.generate(verifier, drafter, prompt, max_new_tokens=new).row() == expected.row()


def test_rows_that_outgrow_the_cache_get_a_larger_one(tiny_llama, monkeypatch):
    monkeypatch.setattr(sys.modules["specdec.decode"], "capacity", lambda slots: -(-slots // 16) * 16)
    made = []
    verifier, drafter = replaying(tiny_llama, made), ModelDrafter(tiny_llama, length=3)
    for new in (10, 60, 30):
        expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=new)
        assert specdec.generate(verifier, drafter, [1, 2], max_new_tokens=new).row() == expected.row()
    assert len(made) == 4, "the larger cache needs recordings of its own, a shorter row does not"


def test_drafters_that_take_turns_keep_their_recordings(tiny_llama):
    made, model = [], ModelDrafter(tiny_llama).model
    verifier = replaying(tiny_llama, made)
    drafters = [NullDrafter(), ModelDrafter(model, length=2), ModelDrafter(model, length=4)]
    for _ in range(3):
        for drafter in drafters:
            specdec.generate(verifier, drafter, [1, 2], max_new_tokens=24)
    assert len(made) == 2 * len(drafters)


def test_other_drafts_and_batches_are_told_apart(tiny_llama):
    verifier = replaying(tiny_llama, [])
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), ROWS[0], max_new_tokens=20)
    for drafter in (ModelDrafter(tiny_llama, length=2), NullDrafter(), ModelDrafter(tiny_llama, length=5)):
        for rows in (ROWS[0], ROWS[0][:1]):
            result = specdec.generate(verifier, drafter, rows, max_new_tokens=20)
            assert torch.equal(result.tokens, expected.tokens[: len(rows)])


def test_end_tokens_stop_a_row_though_the_host_hears_of_it_late(tiny_llama):
    plain = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=30)
    stop = plain.row()[9]
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=30, stop=stop)
    heard = []
    result = specdec.generate(
        replaying(tiny_llama, []), ModelDrafter(tiny_llama, length=3), [1, 2], max_new_tokens=30, stop=stop,
        stream=lambda row, tokens: heard.extend(tokens),
    )  # fmt: skip
    assert result.row() == expected.row() == heard


@pytest.mark.parametrize("drafter", [NullDrafter(), NgramDrafter(length=3)], ids=lambda part: type(part).__name__)
def test_a_fixed_width_pads_every_draft(tiny_llama, drafter):
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    verifier, widths = replaying(tiny_llama, []), []
    widen(verifier, 6)
    noting = tiny_llama.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with noting:
        assert specdec.generate(verifier, drafter, [1, 2], max_new_tokens=20).row() == expected.row()
    first, *others = widths
    assert first == 2 and set(others) == {6}, "the prompt as it is, then one token and padding"


@pytest.mark.parametrize("name", [*DRAFTERS, *HEADS])
def test_no_draft_is_larger_than_its_drafter_says(tiny_llama, name):
    drafter, sizes = {**DRAFTERS, **HEADS}[name](tiny_llama), []
    draft = drafter.draft

    def noted(context, noise):
        sizes.append(draft(context, noise).size)
        return draft(context, noise)

    drafter.draft = noted
    specdec.generate(FullVerifier(tiny_llama), drafter, [1, 2] * 12, max_new_tokens=40)
    assert max(sizes) <= drafter.size
    assert max(sizes) == drafter.size or not drafter.static


def test_a_width_needs_replayed_rounds(tiny_llama):
    with pytest.raises(ValueError, match="needs runtime=graphed"):
        FullVerifier(tiny_llama, width=6)
    verifier = replaying(tiny_llama, [])
    with pytest.raises(ValueError, match="at least 1"):
        widen(verifier, 0)


def test_a_width_needs_our_attention(tiny_llama):
    verifier = replaying(tiny_llama, [])
    with pytest.raises(ValueError, match=r"LlamaForCausalLM in float32 runs with PyTorch's"):
        verifier.width = 6
    assert verifier.width is None
    verifier.width = None
    widen(verifier, 6)
    assert verifier.width == 6


def refuse(*what):
    raise torch.OutOfMemoryError("no room")


def test_what_cannot_be_recorded_is_played_directly_and_said_once(tiny_llama, caplog):
    verifier = FullVerifier(tiny_llama)
    verifier.replay = Replay(refuse)
    with caplog.at_level(logging.WARNING):
        result = specdec.generate(verifier, NullDrafter(), [1, 2], max_new_tokens=20)
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    assert result.row() == expected.row()
    assert len([r for r in caplog.records if "verify cannot be recorded" in r.message]) == 1


def test_a_draft_that_cannot_be_recorded_is_made_directly(tiny_llama, caplog):
    verifier, recorded = replaying(tiny_llama, []), []

    class Touchy(ModelDrafter):
        def draft(self, context, noise):
            if verifier.replay.recording:
                recorded.append(context)
                raise ValueError("not while recording")
            return super().draft(context, noise)

    drafter = Touchy(tiny_llama, length=3)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            result = specdec.generate(verifier, drafter, [1, 2], max_new_tokens=20)
            assert result.metrics.mean_accepted_tokens > 3 and not result.metrics.faults
    assert len(recorded) == 1, "a failure is not tried again"
    (record,) = caplog.records
    assert "propose cannot be recorded" in record.message and "not while recording" in record.message


def test_a_prompt_that_the_draft_model_cannot_read_costs_speed_only(tiny_llama, monkeypatch):
    drafter = ModelDrafter(tiny_llama, length=3)
    advance, calls = drafter.model.advance, []

    def once(*what, **options):
        calls.append(what)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return advance(*what, **options)

    monkeypatch.setattr(drafter.model, "advance", once)
    result = specdec.generate(replaying(tiny_llama, []), drafter, [1, 2], max_new_tokens=20)
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    assert result.row() == expected.row()
    assert result.metrics.faults == {"ModelDrafter: raised OutOfMemoryError: no room": 1}
    assert result.metrics.mean_accepted_tokens > 3, "the model is read at the first draft"


def test_a_drafter_that_reads_numbers_on_the_host_is_not_recorded(tiny_llama, caplog):
    class Peeking(ModelDrafter):
        def draft(self, context, noise):
            draft = super().draft(context, noise)
            return draft if int(context.lengths[0]) % 2 else specdec.Draft.empty(context.lengths).padded(4)

    rounds = []
    for verifier in (replaying(tiny_llama, []), FullVerifier(tiny_llama)):
        result = specdec.generate(verifier, Peeking(tiny_llama, length=4), [1, 2], max_new_tokens=40)
        rounds.append([entry.committed for entry in result.trace.rounds])
    assert rounds[0] == rounds[1]
    assert "propose cannot be recorded" in caplog.text


def test_drafters_with_other_taps_have_recordings_of_their_own(tiny_llama):
    seen = []

    class Tapping(NgramDrafter):
        def __init__(self, *layers):
            super().__init__(length=2)
            self.wants = tuple(specdec.Tap(layer) for layer in layers)

        def draft(self, context, noise):
            states = {} if context.advice is None else context.advice.states
            seen.append({tap.layer for tap in states} == {tap.layer for tap in self.wants})
            return super().draft(context, noise)

    verifier, expected = replaying(tiny_llama, []), None
    for layers in ((), (1,), (0, 2), ()):
        result = specdec.generate(verifier, Tapping(*layers), [1, 2, 1, 2], max_new_tokens=20)
        expected = expected or result.row()
        assert result.row() == expected and not result.metrics.faults
    assert all(seen)


def test_a_drafter_may_be_unhashable_and_its_model_may_be_anything(tiny_llama):
    @dataclass
    class Odd(NgramDrafter):
        model: dict = field(default_factory=dict)
        length: int = 3
        min_ngram: int = 1
        max_ngram: int = 3

    result = specdec.generate(replaying(tiny_llama, []), Odd(), [1, 2], max_new_tokens=20)
    expected = specdec.generate(FullVerifier(tiny_llama), NullDrafter(), [1, 2], max_new_tokens=20)
    assert result.row() == expected.row() and not result.metrics.faults


def test_a_width_that_drafts_do_not_fit_is_refused(tiny_llama):
    verifier = replaying(tiny_llama, [])
    widen(verifier, 4)
    with pytest.raises(ValueError, match="width is 4, but drafts have up to 6 tokens: it must be 7"):
        specdec.generate(verifier, NgramDrafter(length=6), [1, 2], max_new_tokens=20)


@pytest.mark.parametrize(
    ("channel", "forecast"),
    [(Thread(), DraftTopK(1)), (Simulated(COSTS), DraftTopK(1)), (Simulated(COSTS), None)],
    ids=["thread", "simulated", "simulated in turns"],
)
def test_a_width_is_refused_where_rounds_are_not_replayed(tiny_llama, channel, forecast):
    verifier, drafter = replaying(tiny_llama, []), ModelDrafter(tiny_llama, length=3)
    options = {"max_new_tokens": 20, "channel": channel, "forecast": forecast}
    assert specdec.generate(verifier, drafter, [1, 2], **options).lengths.tolist() == [20]
    widen(verifier, 6)
    with pytest.raises(ValueError, match="width of 6 is kept by replayed rounds only"):
        specdec.generate(verifier, drafter, [1, 2], **options)


def test_a_draft_model_that_failed_looks_at_the_rows_again(tiny_llama):
    drafter = ModelDrafter(tiny_llama, length=3)
    grow, calls = drafter.model.grow, []

    def failing(*what, **options):
        calls.append(what)
        if 3 <= len(calls) <= 5:
            raise RuntimeError("not now")
        return grow(*what, **options)

    drafter.model.grow = failing
    verifier = replaying(tiny_llama, [])
    verifier.replay = Replay(refuse)  # played directly, round by round
    result = specdec.generate(verifier, drafter, [1, 2], max_new_tokens=60)
    assert sum(result.metrics.faults.values()) == 3
    assert {entry.accepted for entry in result.trace.rounds[8:-1]} == {3}, "the draft model is the target"


def test_recordings_that_were_not_played_for_long_are_dropped(tiny_llama, monkeypatch):
    monkeypatch.setattr("specdec.runtime.replay.MOST", 4)
    verifier, drafter = replaying(tiny_llama, []), NullDrafter()
    for temperature in (0.5, 0.6, 0.7, 0.8, 0.9):
        for _ in range(2):
            specdec.generate(
                verifier, drafter, [1, 2], max_new_tokens=20, sampling=Sampling(temperature=temperature)
            )
    known = verifier.replay._known.values()
    assert len([part for part in known if part.recording is not None]) == 4 < len(known)


def test_a_value_comes_apart_and_together():
    value = (specdec.Draft.empty(torch.tensor([3])), {"a": torch.ones(2)}, "word", [torch.zeros(1)])
    leaves: list[torch.Tensor] = []
    shape = flatten(value, leaves)
    again = rebuild(shape, iter(leaves))
    assert again[0].base is value[0].base
    assert again[1]["a"] is value[1]["a"]
    assert again[2] == "word"
    other: list[torch.Tensor] = []
    assert (
        flatten((specdec.Draft.empty(torch.tensor([5])), {"a": torch.ones(2)}, "word", [torch.zeros(1)]), other)
        == shape
    )
    assert flatten(value[1:], []) != shape
    assert Held("word") != Held("other")
