"""Compiled layers give what plain ones give, share their code, and step back where they do not compile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from families import FAMILIES

import specdec
from drafters import EarlyExitDrafter
from specdec import Tap
from specdec.runtime.compiled import CompiledLayers
from specdec.runtime.held import rebuild
from specdec.runtime.huggingface import Network
from specdec.runtime.model import CachedModel
from specdec.runtime.replay import Recording, Replay
from verifiers import FullVerifier

CHAIN = torch.tensor([[5, 6, 7]]), torch.tensor([[-1, 0, 1]])
ROW = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([5])
ROWS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile every forward: a CPU has no attention that takes a sight, by which they are told."""

    def compiling(self: Network, window: Any) -> Any:
        return CompiledLayers()([]) if self.compiled is None else self.compiled(self._layers)

    monkeypatch.setattr(Network, "_compiling", compiling)


def counting(graphs: list[Any]) -> CompiledLayers:
    """Layers compiled by a backend that only notes what it is given."""

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    return CompiledLayers(partial(torch.compile, dynamic=False, backend=backend))


def logits(model: CachedModel, width: int = 3, taps: tuple[Tap, ...] = ()) -> Any:
    if model._owns:
        model.begin(1, 16)
    model.advance(*ROW)
    chain = CHAIN[0][:, :width], CHAIN[1][:, :width]
    with torch.inference_mode():
        return model.advance(*ROW, chain, taps)


@pytest.mark.parametrize("kind", FAMILIES)
def test_gives_the_logits_of_plain_layers(kind: str, on_a_cpu: None) -> None:
    model = FullVerifier(FAMILIES[kind]()).model
    expected = logits(model, taps=(Tap(0), Tap(2)))
    model.network.compiled = CompiledLayers(partial(torch.compile, dynamic=False, backend="aot_eager"))
    found = logits(model, taps=(Tap(0), Tap(2)))
    torch.testing.assert_close(found.logits, expected.logits)
    for tap, state in expected.states.items():
        torch.testing.assert_close(found.states[tap], state)
    assert not model.network.compiled._plain


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3-hybrid"])
def test_what_is_compiled_for_one_layer_serves_all_of_its_kind(kind: str, on_a_cpu: None) -> None:
    counts = []
    for layers in (4, 8):
        torch._dynamo.reset()
        changes = {"num_hidden_layers": layers}
        if kind == "gemma3-hybrid":
            changes["layer_types"] = ["sliding_attention", "full_attention"] * (layers // 2)
        model, graphs = FullVerifier(FAMILIES[kind](**changes)).model, list[Any]()
        model.network.compiled = counting(graphs)
        logits(model)
        counts.append(len(graphs))
        logits(model)
        assert len(graphs) == counts[-1], "a second forward of the same width compiles nothing"
        logits(model, width=2)
        assert len(graphs) > counts[-1], "another width does"
    assert counts[0] == counts[1]


def failing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that runs half of its work, then finds that it cannot go on."""

    def run(*what: Any, **options: Any) -> Any:
        function(*what, **options)
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no such kernel"), None)

    return run


def test_a_layer_that_does_not_compile_runs_as_it_is_and_is_named_once(
    on_a_cpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    model = FullVerifier(FAMILIES["gpt2"]()).model
    expected = logits(model).logits
    model.network.compiled = CompiledLayers(failing)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(model).logits, expected) and torch.equal(logits(model).logits, expected)
    (record,) = caplog.records
    assert "GPT2Block is not compiled and runs as it is" in record.message and "no such kernel" in caplog.text


def test_the_reason_is_what_the_compiler_said(on_a_cpu: None, caplog: pytest.LogCaptureFixture) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        if len(graphs) == 3:  # by then the layer's attention has written to the cache
            raise RuntimeError("no such kernel")
        return graph

    model = FullVerifier(FAMILIES["gpt2"]()).model
    expected = logits(model).logits
    model.network.compiled = CompiledLayers(partial(torch.compile, dynamic=False, backend=backend))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(model).logits, expected)
    (record,) = caplog.records
    assert "no such kernel" in record.message


def test_out_of_memory_is_no_fault_of_the_compiler(on_a_cpu: None) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no room")

    model = FullVerifier(FAMILIES["gpt2"]()).model
    model.network.compiled = CompiledLayers(lambda _: full)
    with pytest.raises(torch.OutOfMemoryError):
        logits(model)
    assert not model.network.compiled._plain


def test_too_many_widths_are_not_passed_over(
    on_a_cpu: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.runtime.compiled.MOST", 1)
    model = FullVerifier(FAMILIES["llama"]()).model
    expected = logits(model, width=2).logits
    model.network.compiled = counting([])
    with caplog.at_level(logging.WARNING):
        logits(model)
        assert torch.equal(logits(model, width=2).logits, expected)
    assert "LlamaDecoderLayer is not compiled" in caplog.text


def test_what_is_wrong_without_a_compiler_is_raised_and_the_module_is_as_it_was(on_a_cpu: None) -> None:
    module = FAMILIES["llama"]()
    before = module.generate(ROW[0], max_new_tokens=5, do_sample=False)
    model = FullVerifier(module).model
    model.network.compiled = CompiledLayers(failing)
    module.model.layers[2].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model)
    assert not any("forward" in vars(layer) for layer in module.model.layers)
    module.model.layers[2].mlp._forward_pre_hooks.clear()
    assert torch.equal(module.generate(ROW[0], max_new_tokens=5, do_sample=False), before)


def test_an_early_exit_runs_its_own_layers_only(on_a_cpu: None) -> None:
    model, graphs = FullVerifier(FAMILIES["gpt2"]()).model, list[Any]()
    model.begin(1, 16)
    expected = logits(model.early_exit(2)).logits
    model.network.compiled = counting(graphs)
    torch.testing.assert_close(logits(model.early_exit(2)).logits, expected)
    assert graphs


@pytest.mark.parametrize("kind", ["gpt2", "gemma3-hybrid", "qwen3-moe"])
def test_nothing_is_compiled_while_rounds_are_recorded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from specdec.kernels import attention

    monkeypatch.setattr(attention, "attend", attention.attend_reference)
    verifier, graphs, late = FullVerifier(FAMILIES[kind]()), list[Any](), list[int]()

    class Rerun(Recording):
        """Stands in for a CUDA graph, in which a compiler must have nothing left to do."""

        def __init__(self, part: Callable[..., Any], shape: Any, leaves: Sequence[torch.Tensor]) -> None:
            self._part, self._shape = part, shape
            self(leaves)

        def __call__(self, leaves: Sequence[torch.Tensor]) -> Any:
            before = len(graphs)
            result = self._part(*rebuild(self._shape, iter([leaf.clone() for leaf in leaves])))
            late.append(len(graphs) - before)
            return result

    drafter = EarlyExitDrafter(exit_layer=1, length=3, width=2)
    expected = specdec.generate(verifier, drafter, ROWS, max_new_tokens=16)
    verifier.replay = Replay(Rerun)
    verifier.model.network.brief, verifier.model.network.compiled = True, counting(graphs)
    found = specdec.generate(verifier, drafter, ROWS, max_new_tokens=16)
    assert torch.equal(found.tokens, expected.tokens) and not found.metrics.faults
    assert graphs and late and not any(late)
