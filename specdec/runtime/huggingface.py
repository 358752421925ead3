"""Hugging Face models as they are. The only file that imports transformers.

B rows, W tokens of one forward, M tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specdec.runtime.attention import Window, attend
from specdec.types import Tap

ATTENTION = "specdec"
AttentionInterface.register(ATTENTION, attend)


class Network:
    """A causal language model whose attention reads and writes our cache.

    The module is not changed: it runs under our attention for the length of a call only, so its own
    ``generate`` goes on working.

    Args:
        module: any decoder-only ``PreTrainedModel`` that uses transformers' attention interface.

    Raises:
        ValueError: the architecture cannot roll back by length, or has no attention interface.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        refuse_unsupported(module)
        self.module = module.eval()
        self.config = module.config.get_text_config()
        self._configs = {id(config): config for config in (module.config, self.config)}.values()
        self._layers = layer_list(module, self.config.num_hidden_layers)[1]

    @property
    def vocab_size(self) -> int:
        """V, width of the logits."""
        head = self.module.get_output_embeddings()
        return int(head.weight.shape[0]) if head is not None else int(self.config.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """Positions the model was made for, None where it does not say."""
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.module.get_input_embeddings().weight.device  # type: ignore[union-attr,return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.module.dtype

    def __call__(
        self, tokens_BW: Tensor, positions_BW: Tensor, window: Window, keep: int, taps: tuple[Tap, ...] = ()
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """Logits [B, M, V] of the last ``keep`` tokens, and tapped states [B, W, hidden]."""
        with self._our_attention(), self._tapping(taps) as states:
            answer = self.module(
                input_ids=tokens_BW,
                position_ids=positions_BW,
                use_cache=False,
                logits_to_keep=keep,
                window=window,
            )
        return answer.logits, states

    def early_exit(self, layers: int) -> Network:
        """The first ``layers`` layers with the model's own norm and head: a view that shares every weight.

        Raises:
            ValueError: there are no layers left, or none left out.
        """
        if not 0 < layers < self.depth:
            raise ValueError(f"exit_layer must be from 1 to {self.depth - 1} for this model, not {layers}")
        name, stack = layer_list(self.module, self.config.num_hidden_layers)
        *parents, last = name.split(".")
        view = outer = _shallow(self.module)
        for parent in parents:
            inner = _shallow(getattr(outer, parent))
            setattr(outer, parent, inner)
            outer = inner
        setattr(outer, last, nn.ModuleList(list(stack)[:layers]))
        return _view(self, view, layers)

    @contextmanager
    def _our_attention(self) -> Iterator[None]:
        before = [(config, config._attn_implementation_internal) for config in self._configs]
        for config, _ in before:
            config._attn_implementation_internal = ATTENTION
        try:
            yield
        finally:
            for config, implementation in before:
                config._attn_implementation_internal = implementation

    @contextmanager
    def _tapping(self, taps: tuple[Tap, ...]) -> Iterator[dict[Tap, Tensor]]:
        states: dict[Tap, Tensor] = {}
        handles = [self._hook(tap, states) for tap in taps]
        try:
            yield states
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, tap: Tap, states: dict[Tap, Tensor]) -> Any:
        if not 0 <= tap.layer <= self.depth:
            raise ValueError(f"tap at layer {tap.layer}: the model has layers 0 (embedding) to {self.depth}")
        if tap.layer == 0:  # what goes into the first layer; an embedding may be scaled after the module

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                states[tap] = args[0] if args else kwargs["hidden_states"]

            return self._layers[0].register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states[tap] = output[0] if isinstance(output, tuple) else output

        return self._layers[tap.layer - 1].register_forward_hook(after)


def _shallow(module: nn.Module) -> Any:
    """A copy of a module that shares its weights and children, but not the tables it keeps them in."""
    view = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):
            view.__dict__[name] = copy.copy(value)
    return view


def _view(network: Network, module: Any, layers: int) -> Network:
    view = copy.copy(network)
    view.module, view._layers = module, network._layers[:layers]
    return view


def layer_list(module: nn.Module, depth: int) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers.

    Raises:
        ValueError: no module list has as many entries as the model has layers.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return name, child
    raise ValueError(f"{type(module).__name__} has no list of {depth} decoder layers")


def refuse_unsupported(module: PreTrainedModel) -> None:
    """Raises ValueError, with the reason, for a model that cannot be a target or a draft model."""
    name, config = type(module).__name__, module.config.get_text_config()
    if getattr(module.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: a decoder-only model is needed")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if getattr(module, "_is_stateful", False) or kinds:
        raise ValueError(
            f"{name} has recurrent or other state ({', '.join(sorted(kinds)) or 'no key-value cache'}) that cannot "
            "be rolled back by length when draft tokens are rejected"
        )
    if not getattr(module, "_supports_attention_backend", False) or not hasattr(config, "num_hidden_layers"):
        raise ValueError(f"{name} does not use transformers' attention interface, through which the cache works")


def read_model(
    path: str | Path, dtype: torch.dtype, device: torch.device | str, gguf_file: str | None = None
) -> PreTrainedModel:
    """A model from a Hugging Face id or a directory; of a GGUF file, its weights dequantised."""
    options: dict[str, Any] = {"dtype": dtype}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
        if hasattr(transformers, "GgufConfig"):  # older releases always dequantise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(path, **options).to(device)


def read_tokenizer(path: str | Path, gguf_file: str | None = None) -> Any:
    """The tokenizer that belongs to a model."""
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    return AutoTokenizer.from_pretrained(path, **options)


def end_tokens(module: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a generation, from the generation config, else from the model's."""
    for config in (module.generation_config, module.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    return ()


