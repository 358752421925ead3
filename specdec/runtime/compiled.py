"""Decoder layers of networks that are not run by the fused kernels, compiled one by one.

Layers of one kind share their code: what is compiled for one serves all. Attention is ours and stays outside,
as do hooks on the layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

# Forms that one kind of code is compiled in: for widths of forwards, batches, kinds of layers and all models that
# a process ever loads.
MOST = 1024


class CompiledLayers:
    """Runs decoder layers compiled, for as long as a forward lasts; the modules are then as they were.

    A kind of layer that does not compile runs as it is, and is named once.

    Args:
        compile: makes a compiled function of a function; ``torch.compile`` with static shapes unless a test
            chooses another.
    """

    def __init__(self, compile: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None) -> None:
        self._compiled = (compile or partial(torch.compile, dynamic=False))(forward)
        self._plain: set[type[nn.Module]] = set()

    @contextmanager
    def __call__(self, layers: Iterable[nn.Module]) -> Iterator[None]:
        """Within this context the layers run compiled."""
        limits: dict[str, Any] = {"recompile_limit": MOST, "accumulated_recompile_limit": MOST}
        # Else PyTorch would go on without compiling, and without a word.
        limits |= {"fail_on_recompile_limit_hit": True, "suppress_errors": False}
        with ExitStack() as stack:
            stack.enter_context(torch._dynamo.config.patch(limits))
            for layer in layers:
                stack.callback(set_forward, layer, vars(layer).get("forward"))
                set_forward(layer, partial(self._run, layer, layer.forward))
            yield

    def _run(self, layer: nn.Module, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if type(layer) in self._plain:
            return plain(*args, **kwargs)
        written: set[int] = kwargs["window"].written
        before = set(written)
        try:
            return self._compiled(plain, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise  # of which the plain layer is no cure
        except Exception as error:  # whatever a compiler stumbles over
            # What is wrong without a compiler too is raised here.
            written.intersection_update(before)
            answer = plain(*args, **kwargs)
            self._plain.add(type(layer))
            reason = " ".join(str(error).split("\n")[:2]).strip()  # of two lines the first says whose error it is
            log.warning("%s is not compiled and runs as it is: %s", type(layer).__name__, reason, exc_info=error)
            return answer


def forward(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's own forward: what is compiled, once for all layers."""
    return plain(*args, **kwargs)


def set_forward(layer: nn.Module, function: Callable[..., Any] | None) -> None:
    """Let a layer run something else; None for the forward of its class."""
    if function is None:
        vars(layer).pop("forward", None)
    else:
        vars(layer)["forward"] = function
