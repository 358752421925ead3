"""A tiny random chat model on disk, tokenizer and chat template included."""

from __future__ import annotations

from pathlib import Path

from families import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
TEXT = ["one two three four five six seven", "the cat sat on the mat and the dog ran to the sea"]


def save_tiny_chat(path: Path, chat: bool = True) -> Path:
    """Write a model of 4 layers and 256 positions whose tokenizer is a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[1])
    fast.chat_template = CHAT if chat else None
    fast.save_pretrained(path)
    llama(vocab_size=len(fast), eos_token_id=0, pad_token_id=1).save_pretrained(path)
    return path
