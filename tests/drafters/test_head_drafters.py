"""Drafts of heads: what is drafted, from which state, and that it costs no token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCABULARY, plain_greedy, random_prompt
from published_heads import prefilled, scattered
from torch import nn

import specdec
from drafters import HydraDrafter, MedusaDrafter, NullDrafter, ReDrafter
from drafters.checkpoint import fill
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.redrafter import RecurrentHead
from specdec import Advice, Coupled, Draft, Match, Sampling, Tap, tree
from specdec.channel import Inline, Thread
from specdec.forecast import AllAccepted
from specdec.noise import Still
from specdec.runtime.huggingface import Network
from specdec.sequences import Sequences
from specdec.worker import Absent
from verifiers import FullVerifier

ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
X, V, NEW = 32, VOCABULARY, 16
KINDS = ["medusa", "hydra", "redrafter", "shared medusa", "shared hydra", "shared redrafter"]
PLAIN = KINDS[:3]


def filled(heads: nn.Module) -> Any:
    """Heads with random weights that depend on names and shapes alone."""
    fill(heads, lambda name, shape: scattered({name: shape}, seed=sum(map(ord, name)))[name])
    return heads


MADE: dict[str, Callable[[], nn.Module]] = {
    "medusa": lambda: MedusaHeads(X, V, heads=3),
    "hydra": lambda: HydraHeads(X, V, heads=3, layers=2),
    "redrafter": lambda: RecurrentHead(X, V, 24),
    "shared medusa": lambda: MedusaHeads(X, V, heads=3, shared_head=True),
    "shared hydra": lambda: HydraHeads(X, V, heads=3, shared_head=True),
    "shared redrafter": lambda: RecurrentHead(X, V, X, shared_head=True),
}
DRAFTERS = {"medusa": MedusaDrafter, "hydra": HydraDrafter, "redrafter": ReDrafter}


@cache
def heads(kind: str) -> Any:
    return filled(MADE[kind]())


def drafter(kind: str, **options: Any) -> Any:
    return DRAFTERS[kind.split()[-1]](heads(kind), **{"length": 3, **options})


@cache
def verifier(family: str = "llama") -> FullVerifier:
    return FullVerifier(FAMILIES[family]())


def logits_along(kind: str, row: list[int], paths: list[list[int]]) -> list[torch.Tensor]:
    """[V] at the end of each path behind a row, by the heads alone, one path at a time."""
    module, made, found = verifier().model.network.module, heads(kind), []
    network = verifier().model.network
    with torch.no_grad():
        states = module(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True).hidden_states
        for path in paths:
            memory = made.start(states[-1][:, -2:-1])
            for level, token in enumerate([row[-1], *path]):
                memory = made.read(level, memory, torch.tensor([[token]]), network)
            found.append(made.say(len(path), memory, network)[0, 0])
    return found


def paths_of(draft: Draft, b: int) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens[b].tolist(), draft.parents[b].tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def plain_tree(kind: str, row: list[int], depth: int, width: int, nodes: int) -> set[tuple[int, ...]]:
    """Paths of the likeliest nodes of a tree in which every level's best ``width`` nodes have children."""
    level: dict[tuple[int, ...], float] = {(): 0.0}
    found: dict[tuple[int, ...], float] = {}
    for _ in range(depth):
        children: dict[tuple[int, ...], float] = {}
        for path, score in level.items():
            (logits_V,) = logits_along(kind, row, [list(path)])
            best = logits_V.log_softmax(-1).topk(width)
            for gain, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                children[*path, token] = score + gain
        found |= children
        level = dict(sorted(children.items(), key=lambda item: -item[1])[:width])
    return {path for path, _ in sorted(found.items(), key=lambda item: -item[1])[:nodes]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_every_head_s_own_choice_behind_the_one_before(kind: str) -> None:
    made = drafter(kind)
    context = prefilled(verifier(), made, ROWS)
    draft = made.draft(context, Still())
    assert draft.fanout == 1 and draft.laws is None and draft.size == made.size == 3
    for b in range(len(ROWS)):
        row, path = context.row(b), []
        for _ in range(3):
            path.append(int(logits_along(kind, row, [path])[0].argmax()))
        assert draft.tokens[b].tolist() == path


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_keeps_the_likeliest_paths(kind: str) -> None:
    made = drafter(kind, width=3, nodes=7)
    context = prefilled(verifier(), made, ROWS)
    draft = made.draft(context, Still())
    assert draft.size == made.size == 7 and draft.laws is None
    for b in range(len(ROWS)):
        drafted = paths_of(draft, b)
        assert len(set(drafted)) == 7 and set(drafted) == plain_tree(kind, context.row(b), 3, 3, 7)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_sampled_chain_ships_the_laws_it_was_drawn_from(kind: str) -> None:
    made, warm = drafter(kind), Sampling(temperature=0.8, top_k=20)
    context = prefilled(verifier(), made, ROWS, warm)
    draft = made.draft(context, specdec.Noise(3, torch.arange(3), 64))
    assert draft.laws is not None
    for b in range(len(ROWS)):
        path = draft.tokens[b].tolist()
        for level, logits_V in enumerate(logits_along(kind, context.row(b), [path[:k] for k in range(3)])):
            torch.testing.assert_close(draft.laws[b, level], warm.law(logits_V), rtol=1e-4, atol=1e-6)
            assert draft.laws[b, level, path[level]] > 0


class TestAdvice:
    """States come with the target's answer; where none came, drafts are of an older one or there are none."""

    @pytest.fixture(params=PLAIN)
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def test_rows_that_were_never_told_of_a_state_get_padding(self, kind: str) -> None:
        made = drafter(kind)
        context = prefilled(verifier(), made, ROWS)
        assert context.advice is not None
        whole = made.draft(context, Still())
        positions_BK = context.advice.positions.clone()
        positions_BK[1] = -1
        made.begin(verifier(), Sequences.start(ROWS, 16))
        advice = Advice(context.advice.states, positions_BK)
        draft = made.draft(replace(context, advice=advice), Still())
        assert (draft.parents[1] == tree.PAD).all() and draft.size == whole.size
        assert torch.equal(draft.tokens[::2], whole.tokens[::2])
        assert torch.equal(draft.parents[::2], whole.parents[::2])

    @pytest.mark.parametrize("static", [False, True])
    def test_without_any_advice_all_is_padding(self, kind: str, static: bool) -> None:
        made = drafter(kind, width=2)
        context = prefilled(verifier(), made, ROWS)
        made.begin(verifier(), Sequences.start(ROWS, 16))  # forgets
        for advice in (None, Advice({}, torch.zeros(3, 0, dtype=torch.int64))):
            draft = made.draft(replace(context, advice=advice, static=static), Still())
            assert (draft.parents == tree.PAD).all()

    def test_a_row_without_news_drafts_from_its_last_state(self, kind: str) -> None:
        made = drafter(kind)
        context = prefilled(verifier(), made, ROWS)
        first = made.draft(context, Still())
        again = made.draft(replace(context, advice=None), Still())
        assert torch.equal(first.tokens, again.tokens) and torch.equal(first.parents, again.parents)

    def test_it_is_the_newest_state_that_counts(self, kind: str) -> None:
        made = drafter(kind)
        context = prefilled(verifier(), made, ROWS)
        assert context.advice is not None
        whole = made.draft(context, Still())
        (tap,) = made.wants
        junk_BKX = torch.full_like(context.advice.states[tap], 9.0)
        last_BK = context.advice.positions == context.advice.positions.amax(1, keepdim=True)
        states_BKX = torch.where(last_BK[..., None], context.advice.states[tap], junk_BKX)
        mixed = Advice({tap: states_BKX.flip(1)}, context.advice.positions.flip(1))
        assert torch.equal(made.draft(replace(context, advice=mixed), Still()).tokens, whole.tokens)

    def test_it_asks_for_the_last_layer_once_it_knows_the_target(self, kind: str) -> None:
        made = drafter(kind)
        assert made.wants == ()
        prefilled(verifier(), made, ROWS)
        assert made.wants == (Tap(4),)


@pytest.mark.parametrize(
    ("family", "kind"), [*(("llama", kind) for kind in KINDS), *(("gemma3-hybrid", kind) for kind in PLAIN)]
)
def test_greedy_tokens_are_hugging_face_s(family: str, kind: str) -> None:
    expected = [plain_greedy(FAMILIES[family](), row, NEW) for row in ROWS]
    for shape in ({}, {"width": 3, "nodes": 8}):
        result = specdec.generate(verifier(family), drafter(kind, **shape), ROWS, max_new_tokens=NEW)
        assert [result.row(b) for b in range(len(ROWS))] == expected
        assert not result.metrics.faults and result.metrics.drafted_tokens > 0


@pytest.mark.parametrize("rule", [Coupled(), Match()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kind", PLAIN)
def test_sampled_tokens_are_those_of_plain_sampling(kind: str, rule: Coupled) -> None:
    warm = Sampling(temperature=0.7)
    options: dict[str, Any] = {"max_new_tokens": NEW, "sampling": warm, "acceptance": rule, "seed": 4}
    expected = specdec.generate(verifier(), NullDrafter(), ROWS, **options)
    result = specdec.generate(verifier(), drafter(kind), ROWS, **options)
    assert torch.equal(result.tokens, expected.tokens) and not result.metrics.faults


@pytest.mark.parametrize("channel", [Inline(), Thread(patience=60)], ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("kind", PLAIN)
def test_ahead_of_the_target_it_costs_no_token(kind: str, channel: Inline) -> None:
    expected = specdec.generate(verifier(), NullDrafter(), ROWS, max_new_tokens=NEW)
    options: dict[str, Any] = {"max_new_tokens": NEW, "forecast": AllAccepted(), "channel": channel}
    result = specdec.generate(verifier(), drafter(kind), ROWS, **options)
    assert torch.equal(result.tokens, expected.tokens)


def test_a_target_out_of_reach_is_refused() -> None:
    absent: Any = Absent(V, torch.device("cpu"))
    with pytest.raises(ValueError, match="out of this drafter's reach"):
        drafter("medusa").begin(absent, Sequences.start(ROWS, 16))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: drafter("medusa", length=4), "there are 3 heads: length must be at most that, not 4"),
        (lambda: drafter("hydra", length=0), "length must be at least 1"),
        (lambda: drafter("redrafter", width=0), "width and nodes must be at least 1"),
        (lambda: ReDrafter(heads("redrafter"), length=None), "say length"),
        (lambda: RecurrentHead(X, V, 24, shared_head=True), "exit_dim must be that, not 24"),
    ],
)
def test_what_cannot_be_made(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_all_heads_are_used_by_default() -> None:
    assert MedusaDrafter(heads("medusa")).size == 3 and ReDrafter(heads("redrafter")).size == 4


def test_heads_in_another_type_are_copied_for_the_target() -> None:
    made = drafter("medusa")
    half = FullVerifier(FAMILIES["llama"]().bfloat16())
    result = specdec.generate(half, made, ROWS, max_new_tokens=20)
    assert not result.metrics.faults and {weight.dtype for weight in heads("medusa").parameters()} == {
        torch.float32
    }
    used = made._model
    specdec.generate(half, made, ROWS[:1], max_new_tokens=20)
    assert made._model is used, "they are copied once"
    specdec.generate(verifier(), made, ROWS, max_new_tokens=20)
    assert made._model.heads is heads("medusa")


def test_a_tree_of_ranks_that_the_target_has_not_is_refused_before_anything_is_drafted() -> None:
    target = FAMILIES["llama"](vocab_size=8)
    heads = MedusaHeads.fresh(Network(target), heads=2)
    with pytest.raises(ValueError, match="the tree has ranks up to 8, but there are 8 tokens"):
        specdec.generate(FullVerifier(target), MedusaDrafter(heads, tree=[[8]]), [1, 2], 4)
