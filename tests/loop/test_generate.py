"""The public face: what goes in, what comes out, where a row ends."""

from __future__ import annotations

import pytest
import torch

import specdec
from drafters import EarlyExitDrafter, ModelDrafter, NgramDrafter, NullDrafter, SuffixDrafter
from specdec import Block, Coupled, Match, Ratio, Sampling, Typical
from verifiers import FullVerifier

PROMPT, ROWS = [1, 2, 3, 1, 2], [[1, 2, 3, 1, 2], [9], [4] * 11]
WARM = Sampling(temperature=0.7)


@pytest.fixture(scope="module")
def verifier(tiny_llama):
    return FullVerifier(tiny_llama)


def drafters(model):
    return [
        NgramDrafter(),
        SuffixDrafter(min_match=1),
        SuffixDrafter(corpus=[PROMPT, [5, 6, 7]]),
        EarlyExitDrafter(),
        EarlyExitDrafter(width=2, nodes=5),
        ModelDrafter(model),
        ModelDrafter(model, length=3, width=2),
    ]


def plain(verifier, prompts=PROMPT, **options):
    return specdec.generate(verifier, NullDrafter(), prompts, **options)


@pytest.mark.parametrize("rule", [Coupled(), Match()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("index", range(7))
def test_coupled_and_match_give_the_tokens_of_plain_sampling(verifier, tiny_drafter, index, rule):
    drafter = drafters(tiny_drafter)[index]
    options = {"max_new_tokens": 40, "sampling": WARM, "acceptance": rule}
    for seed in range(3):
        expected = plain(verifier, ROWS, seed=seed, **options)
        result = specdec.generate(verifier, drafter, ROWS, seed=seed, **options)
        assert torch.equal(result.tokens, expected.tokens)
        assert not result.metrics.faults
    assert not torch.equal(plain(verifier, ROWS, seed=99, **options).tokens, expected.tokens)


def test_coupling_accepts_more_than_matching(verifier, tiny_drafter):
    options = {"max_new_tokens": 100, "sampling": WARM}
    rows = [PROMPT] * 4  # each has noise of its own
    accepted = {
        type(rule): specdec.generate(
            verifier, ModelDrafter(tiny_drafter), rows, acceptance=rule, **options
        ).metrics.mean_accepted_tokens
        for rule in (Match(), Coupled())
    }
    assert accepted[Coupled] > accepted[Match]


def test_a_row_gives_the_same_tokens_whatever_else_is_in_the_batch(verifier):
    options = {"max_new_tokens": 12, "sampling": WARM, "acceptance": Match(), "seed": 5}
    assert plain(verifier, ROWS, **options).row(0) == plain(verifier, ROWS[0], **options).row()


@pytest.mark.parametrize("rule", [Ratio(), Match(), Coupled(), Block(), Typical()], ids=repr)
def test_at_temperature_zero_every_rule_is_greedy(verifier, tiny_drafter, rule):
    expected = plain(verifier, ROWS, max_new_tokens=30)
    for drafter in drafters(tiny_drafter):
        result = specdec.generate(verifier, drafter, ROWS, max_new_tokens=30, acceptance=rule)
        assert torch.equal(result.tokens, expected.tokens)
        assert result.lossless == rule.lossless


def test_equal_seeds_give_equal_tokens(verifier, tiny_drafter):
    def run(seed):
        return specdec.generate(verifier, ModelDrafter(tiny_drafter), ROWS, 60, sampling=WARM, seed=seed).tokens

    once = run(1)
    assert torch.equal(once, run(1))
    assert not torch.equal(once, run(2))


def test_a_row_ends_at_its_first_end_token(verifier, tiny_llama):
    whole = plain(verifier, max_new_tokens=30).row()
    stop = whole[11]
    expected = whole[: whole.index(stop) + 1]
    # A copy of the target drafts what the target says, so the end token lies inside a window.
    for drafter in (NullDrafter(), ModelDrafter(tiny_llama, length=8), ModelDrafter(tiny_llama, width=2)):
        for option in (stop, [stop], (stop, 96)):
            result = specdec.generate(verifier, drafter, PROMPT, max_new_tokens=30, stop=option)
            assert result.row() == expected
            assert result.metrics.new_tokens == len(expected)
            assert sum(entry.committed for entry in result.trace.rounds) == len(expected)


@pytest.mark.parametrize("new", [1, 2, 3, 7, 20])
def test_a_limit_cuts_a_window(verifier, tiny_llama, new):
    result = specdec.generate(verifier, ModelDrafter(tiny_llama, length=5), ROWS, max_new_tokens=new)
    assert result.lengths.tolist() == [new] * 3
    assert torch.equal(result.tokens, plain(verifier, ROWS, max_new_tokens=20).tokens[:, :new])


def test_rows_end_each_at_their_own_time(verifier, tiny_llama):
    whole = plain(verifier, ROWS, max_new_tokens=30)
    stop = whole.row(1)[3]
    result = specdec.generate(verifier, ModelDrafter(tiny_llama), ROWS, max_new_tokens=30, stop=stop)
    for index in range(3):
        row = whole.row(index)
        expected = row[: row.index(stop) + 1] if stop in row else row
        assert result.row(index) == expected
        assert result.tokens[index, len(expected) :].eq(0).all()
    assert result.lengths.unique().numel() > 1


@pytest.mark.parametrize(
    "prompt", [PROMPT, torch.tensor(PROMPT), torch.tensor([PROMPT]), [PROMPT], [torch.tensor(PROMPT)]]
)
def test_token_ids_come_in_many_forms(verifier, prompt):
    assert plain(verifier, prompt, max_new_tokens=5).row() == plain(verifier, max_new_tokens=5).row()


def test_streams_what_is_committed(verifier, tiny_llama):
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}
    calls = []

    def listen(row, tokens):
        calls.append(len(tokens))
        heard[row] += tokens

    result = specdec.generate(verifier, ModelDrafter(tiny_llama), ROWS, max_new_tokens=20, stream=listen)
    assert [heard[row] for row in range(3)] == [result.row(row) for row in range(3)]
    assert max(calls) > 1, "accepted windows come in one piece"


def test_text_and_messages_go_through_the_tokenizer(tiny_llama, tiny_tokenizer):
    verifier = FullVerifier(tiny_llama, tokenizer=tiny_tokenizer)
    one = plain(verifier, "hello world", max_new_tokens=4)
    many = plain(verifier, ["hello world", "hello"], max_new_tokens=4)
    chat = plain(verifier, [{"role": "user", "content": "hello"}], max_new_tokens=4)
    assert one.text == many.text[0] == tiny_tokenizer.decode(one.row(), skip_special_tokens=True)
    assert isinstance(chat.text, str)
    ids = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False
    )
    assert chat.row() == plain(verifier, ids, max_new_tokens=4).row()


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        ([], {}, ValueError, "no prompt"),
        ([[]], {}, ValueError, "empty"),
        ([[1], []], {}, ValueError, "empty"),
        ("", {}, ValueError, "empty"),
        ("text", {}, ValueError, "tokenizer"),
        ([0.5], {}, TypeError, "float"),
        ([1, 97], {}, ValueError, "97"),
        ([1, -1], {}, ValueError, "-1"),
        ([1] * 250, {"max_new_tokens": 10}, ValueError, "256 positions"),
        ([1], {"max_new_tokens": 0}, ValueError, "max_new_tokens"),
    ],
)
def test_bad_input_is_refused(verifier, prompt, options, error, words):
    with pytest.raises(error, match=words):
        plain(verifier, prompt, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NgramDrafter(length=0), "length"),
        (lambda: NgramDrafter(min_ngram=3, max_ngram=2), "ngram"),
        (lambda: SuffixDrafter(length=-1), "length"),
        (lambda: SuffixDrafter(min_match=0), "min_match"),
        (lambda: EarlyExitDrafter(length=0), "length"),
        (lambda: EarlyExitDrafter(width=0), "width"),
        (lambda: EarlyExitDrafter(width=2, nodes=0), "nodes"),
    ],
)
def test_bad_windows_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_last_position_of_the_model_can_be_used(verifier, tiny_llama):
    prompt = [1] * 236
    result = specdec.generate(verifier, ModelDrafter(tiny_llama, length=8), prompt, max_new_tokens=20)
    assert result.row() == plain(verifier, prompt, max_new_tokens=20).row()
    assert not result.metrics.faults
