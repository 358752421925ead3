"""Hugging Face models as they are. The only file that imports transformers.

B rows, W tokens of one forward, M tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from specdec.runtime.attention import Window, attend
from specdec.runtime.compiled import CompiledLayers
from specdec.runtime.huggingface_views import (
    attending,
    layer_list,
    run,
    unheard,
    view,
    with_layers,
    without_decoder,
)
from specdec.runtime.readout import Glance, Stand
from specdec.runtime.support import refuse_unsupported
from specdec.types import Tap

if TYPE_CHECKING:
    from specdec.runtime.lean import LeanNetwork

ATTENTION = "specdec"
# Types that our kernels compute in.
KERNELS = (torch.bfloat16, torch.float16, torch.float32)
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
        self._take(module.eval(), module.config.get_text_config().num_hidden_layers)
        self.lean: LeanNetwork | None = None
        # Whether attention takes a ``Sight`` in place of a mask: where our kernels run.
        self.brief = False
        self.compiled: CompiledLayers | None = None
        self._tuples = False  # whether layers answer with tuples
        self._outlets: dict[torch.device, Network] = {}

    @property
    def vocab_size(self) -> int:
        """V, width of the logits."""
        head = self.module.get_output_embeddings()
        return int(head.weight.shape[0]) if head is not None else int(self.config.vocab_size)

    @property
    def head_weight(self) -> Tensor:
        """[V, hidden], of the head; hidden is the width of the states that it reads."""
        return self.module.get_output_embeddings().weight

    @property
    def max_positions(self) -> int | None:
        """Positions the model was made for, None where it does not say."""
        scaling = getattr(self.config, "rope_parameters", None) or {}
        if scaling.get("rope_type") == "longrope":
            # Beyond these the keys of earlier tokens would have to be computed anew.
            return int(scaling["original_max_position_embeddings"])
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.module.get_input_embeddings().weight.device

    @property
    def devices(self) -> set[torch.device]:
        """Where its weights are."""
        return {weight.device for weight in self.module.parameters()}

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.module.dtype

    def __call__(
        self,
        tokens_BW: Tensor,
        positions_BW: Tensor,
        window: Window,
        keep: int,
        taps: tuple[Tap, ...] = (),
        glance: Glance | None = None,
    ) -> tuple[Tensor, dict[Tap, Tensor]]:
        """Logits [B, M, V] of the last ``keep`` tokens, and tapped states [B, W, hidden]."""
        if self.max_positions is not None:
            # Only what can never be committed lies beyond, but a table of positions has no entry for it.
            positions_BW = positions_BW.clamp(max=self.max_positions - 1)
        if window.sight is not None and self.lean is not None:
            window.written.update(range(self.depth))
            caches = self.lean.caches(window.cache)
            return self.lean(tokens_BW, positions_BW, window.slots, caches, window.sight, keep, taps, glance)
        ours = attending(self._configs, ATTENTION)
        with ours, self._compiling(window), self._tapping(taps, glance) as states:
            answer = self.module(
                input_ids=tokens_BW,
                position_ids=positions_BW,
                use_cache=False,
                logits_to_keep=keep,
                window=window,
            )
        return answer.logits, states

    def embed(self, tokens_BW: Tensor) -> Tensor:
        """The model's own embeddings [B, W, hidden] of tokens, without those of positions if it has them."""
        return self.module.get_input_embeddings()(tokens_BW)

    def norm(self, state_BWX: Tensor) -> Tensor:
        """States [B, W, hidden] as the head reads them, from states behind the last layer.

        Whatever a model has there, for most a final norm: the last entry of Hugging Face's ``hidden_states``.
        """
        if self.lean is not None:
            return self.lean.normed(state_BWX)
        return self._run(self._behind(state_BWX).get_decoder(), state_BWX).last_hidden_state

    def head(self, state_BWX: Tensor) -> Tensor:
        """Logits [B, W, V] of the model's own head on states that ``norm`` gave, scaled or capped as it does."""
        return self._run(without_decoder(self.module, state_BWX), state_BWX).logits

    def read_out(self, state_BWX: Tensor) -> Tensor:
        """Logits [B, W, V] of the model's own norm and head on states from behind any layer, before the norm."""
        if self.lean is not None:
            return self.lean.read_out(state_BWX)
        return self._run(self._behind(state_BWX), state_BWX).logits

    def _run(self, view: Any, state_BWX: Tensor) -> Any:
        # As in a forward: no mask is made, for which some look at their inputs, which no recording can.
        with attending(self._configs, ATTENTION):
            return run(view, state_BWX)

    def _behind(self, state_BWX: Tensor) -> Any:
        name, _ = layer_list(self.module, self.depth)
        return unheard(with_layers(self.module, name, [Stand(self._layers[-1], state_BWX, self._tuples)]))

    def outlet(self, device: torch.device) -> Network:
        """What can ``embed``, ``norm``, ``head`` and ``read_out`` on another device, by copies of weights."""
        if device == self.device:
            return self
        if device not in self._outlets:
            self._outlets[device] = self._outlet(device)
        return self._outlets[device]

    def _outlet(self, device: torch.device) -> Network:
        outlet, depth = copy.copy(self), self.depth
        name, stack = layer_list(self.module, depth)
        # As many layers as it has to have, but all one, that ``read_out`` asks for attributes.
        outlet._take(copy.deepcopy(with_layers(self.module, name, [stack[-1]] * depth)).to(device), depth)
        if self.lean is not None:
            base, head = outlet.module.get_decoder(), outlet.module.get_output_embeddings()
            outlet.lean = self.lean.outlet(base.embed_tokens.weight.data, base.norm.weight.data, head.weight.data)
        return outlet

    def quicken(self) -> None:
        """Prepare to run a few tokens at a time as fast as the device can. Does nothing on a CPU."""
        if self.device.type == "cuda" and self.dtype in KERNELS and not self.brief:
            from specdec.runtime.fuse import fuse

            self.brief, self.lean = True, fuse(self.module, self.config)

    def replay(self, tokens_BW: Tensor) -> Tensor:
        """Logits [B, V] after the last token, of one forward as Hugging Face runs it, nothing of ours."""
        return self.module(input_ids=tokens_BW, use_cache=False, logits_to_keep=1).logits[:, -1]

    def upcast(self, dtype: torch.dtype) -> Network:
        """A copy of the model, its weights included, that computes in another type."""
        return Network(copy.deepcopy(self.module).to(dtype))

    def twin(self) -> Network:
        """The same model with the same weights, but nothing else in common: two threads can run both at once."""
        shared = {id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())}
        twin = copy.copy(self)
        twin._take(copy.deepcopy(self.module, shared), self.depth)
        return twin

    def _take(self, module: Any, depth: int) -> None:
        """Be of another module from here on."""
        self.module, self.config = module, module.config.get_text_config()
        self._configs = tuple({id(config): config for config in (module.config, self.config)}.values())
        self._layers = layer_list(module, depth)[1]

    def early_exit(self, layers: int) -> Network:
        """The first ``layers`` layers with the model's own norm and head: a view that shares every weight.

        Raises:
            ValueError: there are no layers left, or none left out.
        """
        if not 0 < layers < self.depth:
            raise ValueError(f"exit_layer must be from 1 to {self.depth - 1} for this model, not {layers}")
        name, stack = layer_list(self.module, self.depth)
        return view(self, with_layers(self.module, name, list(stack)[:layers]), layers)

    def _compiling(self, window: Window) -> AbstractContextManager[None]:
        """Layers run compiled where shapes do not depend on the rows: each would be compiled anew."""
        return nullcontext() if self.compiled is None or window.sight is None else self.compiled(self._layers)

    @contextmanager
    def _tapping(self, taps: tuple[Tap, ...], glance: Glance | None) -> Iterator[dict[Tap, Tensor]]:
        states: dict[Tap, Tensor] = {}
        with ExitStack() as stack:
            for tap in taps:
                stack.callback(self._hook(tap.layer, partial(states.__setitem__, tap)).remove)
            if glance is not None:
                stack.callback(self._hook(glance.layer, glance.take).remove)
            yield states

    def _hook(self, layer: int, take: Callable[[Tensor], None]) -> Any:
        if not 0 <= layer <= self.depth:
            raise ValueError(f"tap at layer {layer}: the model has layers 0 (embedding) to {self.depth}")
        if layer == 0:  # what goes into the first layer; an embedding may be scaled after the module

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                take(args[0] if args else kwargs["hidden_states"])

            return self._layers[0].register_forward_pre_hook(before, with_kwargs=True)

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._tuples = isinstance(output, tuple)
            take(output[0] if isinstance(output, tuple) else output)

        return self._layers[layer - 1].register_forward_hook(after)
