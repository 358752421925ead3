"""Synthetic models say what they were made to say, at any size, type and temperature, wherever they are made."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from families import plain_greedy, random_prompt

import specdec
from drafters import NullDrafter
from specdec import Sampling
from specdec.runtime import load, synthetic
from specdec.runtime.byte_tokenizer import ByteTokenizer
from specdec.runtime.huggingface_files import new_model
from specdec.runtime.synthetic import SHAPES, Synthetic, successors
from verifiers import FullVerifier

TINY = "synthetic/tiny"
V = SHAPES[TINY].vocab_size
CPU = torch.device("cpu")
SIZES = sorted({shape.vocab_size for shape in SHAPES.values()})
# What the published checkpoints hold, with a head of its own where theirs is tied.
PARAMETERS = {
    "synthetic/qwen3-0.6b": 596_049_920 + 151936 * 1024,
    "synthetic/qwen3-4b": 4_022_468_096 + 151936 * 2560,
    "synthetic/qwen3-8b": 8_190_735_360,
    "synthetic/qwen3-14b": 14_768_307_200,
    "synthetic/qwen3-32b": 32_762_123_264,
}


def walk(token: int, count: int, next_V: torch.Tensor) -> list[int]:
    """The tokens that follow a token."""
    tokens = []
    for _ in range(count):
        token = int(next_V[token])
        tokens.append(token)
    return tokens


class TestSuccessors:
    @pytest.mark.parametrize("size", SIZES)
    def test_the_target_goes_through_all_tokens_before_one_comes_back(self, size: int) -> None:
        next_V = successors(size).tolist()
        token, steps = next_V[0], 1
        while token != 0:
            token, steps = next_V[token], steps + 1
        assert steps == size

    @pytest.mark.parametrize("seed", [0, 1, -7, 2**40])
    @pytest.mark.parametrize("agreement", [0, 0.001, 0.123, 0.5, 0.8, 0.99, 1])
    @pytest.mark.parametrize("size", SIZES)
    def test_agrees_on_exactly_its_share(self, size: int, agreement: float, seed: int) -> None:
        mine_V = successors(size, agreement, seed)
        assert torch.equal(mine_V.sort().values, torch.arange(size)), "no permutation"
        assert int((mine_V == successors(size)).sum()) == round(agreement * size)

    def test_the_seed_chooses_where(self) -> None:
        one, two = ((successors(V, 0.5, seed) == successors(V)).tolist() for seed in (1, 2))
        assert one != two and torch.equal(successors(V, 1, 1), successors(V, 1, 2))

    def test_tokens_that_agree_lie_anywhere(self) -> None:
        agreed_V = successors(151936, 0.5, 3) == successors(151936)
        shares = [float(part.float().mean()) for part in agreed_V.chunk(8)]
        assert all(abs(share - 0.5) < 0.02 for share in shares)  # five standard deviations

    @pytest.mark.parametrize("agreement", [-0.1, 1.1, float("nan"), float("inf")])
    def test_what_is_no_share(self, agreement: float) -> None:
        with pytest.raises(ValueError, match=r"agreement must be from 0 to 1, not"):
            Synthetic(TINY, agreement)

    def test_one_token_cannot_differ_alone(self) -> None:
        with pytest.raises(ValueError, match=r"leaves 1 of 512 tokens to differ.*choose 1 or at most 0\.99"):
            Synthetic(TINY, 511 / 512)
        assert int((Synthetic(TINY, 510 / 512).successors != successors(V)).sum()) == 2


class TestModel:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_continues_every_token_in_any_context(self, dtype: str) -> None:
        module = Synthetic(TINY).module(getattr(torch, dtype), CPU)
        generator = torch.Generator().manual_seed(0)
        tokens_BS = torch.stack([torch.randperm(V, generator=generator) for _ in range(3)])
        with torch.no_grad():
            logits_BSV = module(tokens_BS).logits.float()
        assert torch.equal(logits_BSV.argmax(-1), successors(V)[tokens_BS])
        first, second = logits_BSV.topk(2).values.unbind(-1)
        assert float((first - second).min()) > 20, "sampling at temperature 1 could say something else"

    def test_layers_that_add_too_much_would_be_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(synthetic, "DRIFT", 50)
        module = Synthetic(TINY).module(torch.float32, CPU)
        tokens_1S = torch.arange(V)[None]
        with torch.no_grad():
            right_1S = module(tokens_1S).logits.argmax(-1) == successors(V)
        assert float(right_1S.float().mean()) < 0.5

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("temperature", [0, 1])
    def test_through_the_engine(self, dtype: str, temperature: float) -> None:
        verifier = FullVerifier(TINY, dtype=dtype, device="cpu")
        rows = [[5], [1, 2, 3], [300, 7, 7, 511]]
        result = specdec.generate(
            verifier, NullDrafter(), rows, max_new_tokens=40, sampling=Sampling(temperature=temperature)
        )
        assert [result.row(b) for b in range(3)] == [walk(row[-1], 40, successors(V)) for row in rows]

    def test_through_hugging_face(self) -> None:
        module = Synthetic(TINY).module(torch.float32, CPU)
        prompt = [token % V for token in random_prompt(9, seed=1)]
        assert plain_greedy(module, prompt, 20) == walk(prompt[-1], 20, successors(V))

    def test_is_the_same_whenever_it_is_made_and_leaves_the_generator_alone(self) -> None:
        before = torch.get_rng_state()
        first = Synthetic(TINY).module(torch.float32, CPU).state_dict()
        torch.rand(3)
        torch.set_rng_state(before)
        second = Synthetic(TINY).module(torch.float32, CPU).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_no_matrix_has_zeros(self) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            for name, weight in Synthetic(TINY).module(dtype, CPU).named_parameters():
                assert float((weight == 0).float().mean()) < 0.01, name

    def test_has_a_head_of_its_own_and_no_end(self) -> None:
        loaded = load(TINY, dtype="bfloat16", device="cpu")
        module = loaded.model.network.module
        assert module.get_output_embeddings().weight is not module.get_input_embeddings().weight
        assert loaded.end_tokens == () and loaded.model.network.dtype is torch.bfloat16
        assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_shapes_are_the_published_ones(self, name: str) -> None:
        meta = torch.device("meta")
        module = new_model("qwen3", torch.bfloat16, meta, **asdict(SHAPES[name]), tie_word_embeddings=False)
        assert sum(weight.numel() for weight in module.parameters()) == PARAMETERS[name]
        assert module.config.max_position_embeddings == 40960
        assert module.config.rope_parameters["rope_theta"] == 1e6

    @pytest.mark.parametrize("name", ["synthetic/qwen", "synthetic/", "synthetic/Tiny"])
    def test_a_shape_that_is_not_there(self, name: str) -> None:
        with pytest.raises(ValueError, match=rf"no model '{name}': choose among .*{TINY}, .*synthetic/qwen3-8b"):
            load(name)


class TestTokenizer:
    def test_bytes_there_and_back(self) -> None:
        tokenizer = ByteTokenizer(V)
        text = "caf\u00e9, two"
        ids = tokenizer(text).input_ids
        assert ids[:-1] == list(text.encode()) and 0 <= ids[-1] < V
        assert tokenizer.decode(ids[:-1], skip_special_tokens=True) == text
        assert tokenizer.decode([104, 105, 256, 511]) == "hi__"
        assert isinstance(tokenizer.decode(range(V)), str)

    def test_texts_that_end_alike_start_at_different_tokens(self) -> None:
        tokenizer = ByteTokenizer(151936)
        starts = {tokenizer(f"Question {number}?").input_ids[-1] for number in range(100)}
        assert len(starts) > 95 and tokenizer("a").input_ids == ByteTokenizer(151936)("a").input_ids

    def test_text_in_and_out(self) -> None:
        verifier = FullVerifier(TINY, dtype="float32", device="cpu")
        result = specdec.generate(verifier, NullDrafter(), "hello", max_new_tokens=7)
        start = ByteTokenizer(V)("hello").input_ids[-1]
        assert result.row() == walk(start, 7, successors(V))
        assert result.text == verifier.tokenizer.decode(result.row())

    def test_messages_are_refused(self) -> None:
        verifier = FullVerifier(TINY, dtype="float32", device="cpu")
        with pytest.raises(ValueError, match="no chat template: pass text or token ids"):
            specdec.generate(verifier, NullDrafter(), [{"role": "user", "content": "hi"}])

    def test_a_tokenizer_of_one_s_own_replaces_it(self) -> None:
        own = ByteTokenizer(V)
        assert load(TINY, own, device="cpu").tokenizer is own
