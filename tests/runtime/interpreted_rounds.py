"""The kernels of a round beside its forwards against the same in PyTorch; run by ``test_kernels``."""

from __future__ import annotations

import copy
import random
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import specdec
from drafters import Eagle3Drafter, ModelDrafter, NgramDrafter, NullDrafter
from drafters.eagle3_head import Eagle3Head
from drafters.feature import along as gathered
from drafters.feature import put
from drafters.ngram import latest_match
from specdec import Draft, Sampling, Verdict, kernels, tree
from specdec.acceptance.follow import follow
from specdec.guard import admit
from specdec.kernels import choice, drafts, rows, states
from specdec.report import FACTS, FAULTS, report
from specdec.runtime.cache import KVCache
from specdec.runtime.memory import Memory
from specdec.sequences import Sequences
from verifiers import FullVerifier
from verifiers.full import along

VOCABULARY = 7


def some_draft(rng, size, fanout, lengths, mistakes=True):
    """Rows of any shape; some with a mistake."""
    parents = []
    for _ in lengths:
        row: list[int] = []
        for n in range(size):
            open_to = [
                p for p in range(-1, n) if row.count(p) < (fanout or size) and (p < 0 or row[p] != tree.PAD)
            ]
            if fanout == 1:
                open_to = [n - 1] * 3 if n == 0 or row[-1] != tree.PAD else []
            row.append(rng.choice([*open_to, tree.PAD]))
        if mistakes and rng.random() < 0.4:
            row[rng.randrange(size)] = rng.choice([-9, -3, size - 1, size, size + 40, 0])
        parents.append(row)
    tokens = [[rng.randrange(VOCABULARY) for _ in range(size)] for _ in lengths]
    if mistakes and rng.random() < 0.3:
        tokens[0][rng.randrange(size)] = rng.choice([-1, VOCABULARY, 1 << 40])
    base = [length + (mistakes and rng.random() < 0.1) for length in lengths]
    return Draft(torch.tensor(tokens), torch.tensor(parents), torch.tensor(base), fanout=fanout)


@pytest.mark.parametrize("fanout", [1, 2, 3, None])
def test_admission(fanout):
    rng, seen = random.Random(fanout or 9), set()
    for _ in range(30):
        lengths_B, room_B = torch.tensor([5, 9, 14]), torch.tensor([rng.choice([0, 2, 4, 50]) for _ in range(3)])
        draft = some_draft(rng, rng.choice([1, 2, 5, 8]), fanout, lengths_B.tolist())
        expected, faults_BF = admit(draft, lengths_B, room_B, VOCABULARY)
        got = drafts.admitted(
            draft.tokens, draft.parents, draft.base, lengths_B, room_B, VOCABULARY, fanout, len(FAULTS)
        )
        assert torch.equal(got.tokens, expected.tokens) and torch.equal(got.parents, expected.parents)
        assert torch.equal(got.depths, expected.depths) and torch.equal(got.faults, faults_BF.long())
        seen.update(map(tuple, got.faults.tolist()))
    assert len(seen) >= 4  # sound ones, and mistakes of every kind


def settled(rng, size, fanout):
    """Sound rows, what the target chose, and its verdict."""
    lengths_B = torch.tensor([3, 6, 9])
    draft = some_draft(rng, size, fanout, lengths_B.tolist(), mistakes=False)
    draft, _ = admit(draft, lengths_B, torch.full((3,), 50), VOCABULARY)
    token_BM = torch.tensor([[rng.randrange(3) for _ in range(size + 1)] for _ in range(3)])
    draft = Draft(draft.tokens % 3, draft.parents, draft.base, fanout=draft.fanout)
    return draft, token_BM, follow(draft, token_BM)


@pytest.mark.parametrize("fanout", [1, 3, None])
def test_how_far_a_draft_is_followed(fanout):
    rng, depths = random.Random(1), set()
    for _ in range(50):
        draft, token_BM, expected = settled(rng, rng.choice([1, 3, 8, 12]), fanout)
        path_BN, accepted_B, last_B = drafts.followed(draft.tokens, draft.parents, draft.depths, token_BM)
        assert torch.equal(accepted_B, expected.accepted)
        depths.update(accepted_B.tolist())
        for b, count in enumerate(accepted_B.tolist()):  # of two siblings alike either may be taken
            above = -1
            for node in path_BN[b, :count].tolist():
                assert int(draft.parents[b, node]) == above and draft.tokens[b, node] == token_BM[b, above + 1]
                above = node
            assert last_B[b] == token_BM[b, above + 1] and path_BN[b, count:].tolist() == [-1] * (
                draft.size - count
            )
    assert len(depths) > 3


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("stop", [[], [0, 1]])
def test_rows_behind_a_verdict_and_its_report(size, stop):
    rng = random.Random(2)
    for _ in range(12):
        before = Sequences.start([[1] * 3, [2] * 6, [0] * 9], 12, stop)
        before.limits[1] = 8
        before.ended[2] = rng.random() < 0.3
        if size:
            draft, _, verdict = settled(rng, size, 2)
        else:
            draft, zero_B = Draft.empty(before.lengths), torch.zeros_like(before.lengths)
            verdict = Verdict(draft.parents, zero_B, torch.randint(3, (3,)))
        faults_BF, after = torch.randint(2, (3, len(FAULTS))), before.append(draft, verdict)
        table = before.tokens, before.lengths, before.limits, before.ended, before.stop
        got = rows.appended(table, draft.tokens, verdict.parts)
        for mine, theirs in zip(got, (after.tokens, after.lengths, after.ended), strict=True):
            assert torch.equal(mine, theirs)
        expected = report(before, after, draft, verdict, faults_BF)
        told = (before.ended, before.lengths), (after.ended, after.lengths), (draft.tokens, draft.depths)
        assert torch.equal(rows.reported(*told, verdict.parts, faults_BF, FACTS), expected)


def test_long_rows_are_appended_to_step_by_step(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 16)
    before = Sequences.start([[1] * 14, [2] * 31], 40)
    draft, chain_BN = Draft.empty(before.lengths), torch.tensor([[0, 1, 2]] * 2)
    draft = Draft.chain(torch.arange(6).view(2, 3) + 50, before.lengths, torch.tensor([3, 3]))
    verdict = Verdict(chain_BN, torch.tensor([3, 2]), torch.tensor([90, 91]))
    table = before.tokens, before.lengths, before.limits, before.ended, before.stop
    assert torch.equal(rows.appended(table, draft.tokens, verdict.parts)[0], before.append(draft, verdict).tokens)
    memory = Memory.empty(2, 80, torch.device("cpu"))
    memory.hold(before.tokens, before.lengths)
    changed_BS = before.tokens.clone()
    changed_BS[1, 20] = 7
    usable_B = rows.rolled_back(memory.tokens, memory.lengths, changed_BS, before.lengths)
    assert memory.lengths.tolist() == [14, 20] and usable_B.tolist() == [13, 20]


def test_what_a_cache_still_holds():
    rng = random.Random(3)
    for _ in range(20):
        memory = Memory.empty(3, rng.choice([6, 10]), torch.device("cpu"))
        memory.tokens.random_(0, 2)
        memory.lengths.copy_(torch.tensor([rng.randrange(7) for _ in range(3)]))
        other = copy.deepcopy(memory)
        wide_BS, lengths_B = torch.randint(2, (3, 9)), torch.tensor([rng.randrange(1, 9) for _ in range(3)])
        tokens_BS = wide_BS[:, rng.choice([0, 1]) :]  # heads leave the first out
        got_B = rows.rolled_back(other.tokens, other.lengths, tokens_BS, lengths_B)
        assert torch.equal(got_B, memory.roll_back(tokens_BS, lengths_B))
        assert torch.equal(other.lengths, memory.lengths)


def test_which_states_belong_to_committed_tokens():
    position_BW = torch.tensor([[-1, 4, 5, 6, 6], [7, 8, 9, 9, 10]])
    path_BD = torch.tensor([[0, 2, -1], [-1, -1, -1]])
    for mine, theirs in zip(rows.along(position_BW, path_BD, 2), along(position_BW, path_BD, 2), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [5, 9000])
def test_the_likeliest_token(dtype, size):
    torch.manual_seed(size)
    logits = torch.randn(2, 3, size + 4, dtype=dtype)[..., 2:-2]
    assert torch.equal(choice.likeliest(logits), logits.float().argmax(-1))
    # Of equal ones the first, and where there is nothing to choose from, one that there is.
    logits[0, 0], logits[0, 1] = 1, -torch.inf
    logits[1, 2, size // 2 :] = logits[1, 2].max() + 1
    chosen = choice.likeliest(logits)
    assert chosen[0].tolist()[:2] == [0, 0] and int(chosen[1, 2]) == size // 2


@pytest.mark.parametrize("slots", [12, 3000])
@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 3), (2, 4), (3, 3)])
def test_the_latest_match(shortest, longest, slots):
    generator, found = torch.Generator().manual_seed(slots), []
    for _ in range(8):
        tokens_BS = torch.randint(3 if slots < 99 else 40, (4, slots), generator=generator)
        lengths_B = torch.randint(1, slots + 1, (4,), generator=generator)
        expected_B = latest_match(tokens_BS, lengths_B, shortest, longest)
        assert torch.equal(choice.latest_match(tokens_BS, lengths_B, shortest, longest), expected_B)
        found += (expected_B >= 0).tolist()
    assert any(found)


def test_states_are_put_and_found():
    torch.manual_seed(4)
    table_BSX, place_BK, state_BKX = (
        torch.randn(2, 9, 24),
        torch.tensor([[3, -1, 5], [-1, -1, 0]]),
        torch.randn(2, 3, 24),
    )
    mine_BSX, low_B, mine_B = table_BSX.clone(), torch.tensor([4, 7]), torch.tensor([4, 7])
    put(table_BSX, place_BK, state_BKX.bfloat16(), low_B)
    states.put(mine_BSX, place_BK, state_BKX.bfloat16(), mine_B)
    assert torch.equal(mine_BSX[:, :-1], table_BSX[:, :-1]) and torch.equal(mine_B, low_B)  # the last is padding's
    slots_BW, lengths_B = torch.tensor([[2, 4, 5, 6], [-1, 1, 2, 3]]), torch.tensor([4, 1])
    parents_BN = torch.tensor([[-1, 0, 0], [-1, -1, 1]])
    made_BSX = torch.randn(2, 11, 24)
    got_BWX = states.features(table_BSX, made_BSX, slots_BW, lengths_B, parents_BN)
    assert torch.equal(got_BWX[0, 0], table_BSX[0, 2]) and torch.equal(got_BWX[0, 1:], made_BSX[0, [3, 4, 4]])
    assert torch.equal(got_BWX[1, 1:], made_BSX[1, [0, 0, 2]])
    none_BN = parents_BN[:, :0]
    got_BWX = states.features(table_BSX, made_BSX, slots_BW[:1, :1], lengths_B[:1], none_BN[:1])
    assert torch.equal(got_BWX, gathered(table_BSX[:1], slots_BW[:1, :1]))


def test_two_norms_side_by_side():
    torch.manual_seed(5)
    left_MX, right_MX, gain, other = torch.randn(3, 24), torch.randn(3, 24), torch.randn(24), torch.randn(24)
    norm = torch.nn.functional.rms_norm
    expected = torch.cat([norm(left_MX, (24,), gain, 1e-5), norm(right_MX, (24,), other, 1e-5)], -1)
    torch.testing.assert_close(states.normed_pairs(left_MX, right_MX, (gain, other), 1e-5), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_slots_of_all_layers_are_moved(dtype):
    torch.manual_seed(6)
    cache, mine = (KVCache(2, 9) for _ in range(2))
    for layer in range(3):
        keys, values = (torch.randn(2, 3, 10, 24).to(dtype) for _ in range(2))
        cache.keys[layer], cache.values[layer] = keys, values
        mine.keys[layer], mine.values[layer] = keys.clone(), values.clone()
    source_BD, target_BD = torch.tensor([[4, 5, 7], [9, 9, 9]]), torch.tensor([[3, 4, 5], [9, 9, 9]])
    cache.move(source_BD, target_BD)
    buffers = [*mine.keys.values(), *mine.values.values()]
    addresses = mine._addressed(buffers)
    states.moved(addresses, buffers[0], source_BD, target_BD)
    for expected, got in zip([*cache.keys.values(), *cache.values.values()], buffers, strict=True):
        assert torch.equal(got, expected)
    fewer = mine._addressed(buffers[:4])
    # Recordings read both again, whatever layers came and went between.
    assert mine._addressed(buffers) is addresses and mine._addressed(buffers[:4]) is fewer


def everywhere(monkeypatch):
    """All that asks for kernels gets them."""
    for name, module in list(sys.modules.items()):
        if (
            name.split(".")[0] in ("specdec", "drafters", "verifiers")
            and getattr(module, "here", None) is kernels.here
        ):
            monkeypatch.setattr(module, "here", lambda _: True)


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_rounds_are_the_same(monkeypatch, temperature):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 97}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, initializer_range=0.2, **sizes)).eval()
    head, target = Eagle3Head(sizes, 32, layers=(0, 1, 2)), FullVerifier(model)
    arms = [
        NullDrafter(),
        NgramDrafter(length=3),
        ModelDrafter(model, length=2, width=2),
        Eagle3Drafter(head, length=2),
    ]

    def rounds():
        for drafter in arms:
            result = specdec.generate(
                target, drafter, [[1, 2, 3, 1, 2], [9]], max_new_tokens=8, sampling=Sampling(temperature)
            )
            assert not result.metrics.faults
            yield result.tokens.tolist(), result.trace.rounds

    expected = list(rounds())
    everywhere(monkeypatch)
    assert list(rounds()) == expected
