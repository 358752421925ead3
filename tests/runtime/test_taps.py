"""Taps read the target's hidden states where they say they do, and advice belongs to the right positions."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, LAYERS, gemma3_with_vision, perturbed, random_prompt
from torch import Tensor, nn
from transformers import PreTrainedModel

import specdec
from drafters import EarlyExitDrafter, ModelDrafter
from specdec import Advice, Context, Draft, Noise, Tap, Verdict, tree
from specdec.runtime import load
from specdec.sequences import Sequences
from verifiers import FullVerifier

TAPS = tuple(Tap(layer) for layer in range(LAYERS + 1))
ROWS = [random_prompt(9, seed=1), random_prompt(4, seed=2), random_prompt(14, seed=3)]
NODES = [random_prompt(5, seed=4), random_prompt(5, seed=5), random_prompt(5, seed=6)]
PARENTS = [[-1, -1, 0, 1, 3], [-1, 0, 1, 2, tree.PAD], [tree.PAD] * 5]
# The second branch of a tree, a chain that is accepted but for its last node, and a row without a draft.
PATHS = [[1, 3, 4], [0, 1, 2, -1], []]
FINAL_NORMS = {
    "llama": "model.norm",
    "gemma3-hybrid": "model.norm",
    "gpt2": "transformer.ln_f",
    "opt": "model.decoder.final_layer_norm",
    "gpt-neox": "gpt_neox.final_layer_norm",
}


@pytest.fixture(params=FINAL_NORMS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def plain_states(module: PreTrainedModel, row: list[int]) -> tuple[Tensor, ...]:
    """Hugging Face's ``hidden_states`` of a forward without any cache, [tokens, hidden] each."""
    answer = module(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True)
    return tuple(state[0] for state in answer.hidden_states)


def final_norm(module: PreTrainedModel, name: str) -> nn.Module:
    return module.get_submodule(FINAL_NORMS[name])


def close(mine: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


class TestConvention:
    def test_every_index_but_the_last_is_that_of_output_hidden_states(self, name: str) -> None:
        module, row = FAMILIES[name](), ROWS[2]
        states, plain = self.tapped(module, row), plain_states(module, row)
        assert len(plain) == LAYERS + 1
        for tap in TAPS[:-1]:
            close(states[tap], plain[tap.layer])

    def test_the_last_is_read_before_the_final_norm(self, name: str) -> None:
        module, row = FAMILIES[name](), ROWS[2]
        last, plain = self.tapped(module, row)[Tap(LAYERS)], plain_states(module, row)[-1]
        assert not torch.allclose(last, plain, atol=1e-2)
        with torch.no_grad():
            close(final_norm(module, name)(last), plain)

    def tapped(self, module: PreTrainedModel, row: list[int]) -> dict[Tap, Tensor]:
        model = load(module).model
        model.begin(1, 32)
        scores = model.advance(torch.tensor([row]), torch.tensor([len(row)]), taps=TAPS)
        assert scores.positions is not None
        assert scores.positions.tolist() == [list(range(len(row)))]
        return {tap: state[0] for tap, state in scores.states.items()}

    @pytest.mark.parametrize("layer", [-1, LAYERS + 1])
    def test_a_layer_that_is_not_there_is_an_error_and_leaves_no_hook(self, layer: int) -> None:
        module = FAMILIES["llama"]()
        model = load(module).model
        model.begin(1, 32)
        with pytest.raises(ValueError, match=rf"tap at layer {layer}: .* 0 \(embedding\) to {LAYERS}"):
            model.advance(torch.tensor([[1, 2, 3]]), torch.tensor([3]), taps=(Tap(1), Tap(layer)))
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())

    def test_no_tap_no_states(self) -> None:
        model = load(FAMILIES["llama"]()).model
        model.begin(1, 32)
        scores = model.advance(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
        assert scores.states == {}
        assert scores.positions is None


class TestEnds:
    """What lies before and behind the layers, each part alone."""

    @pytest.mark.parametrize("family", [*FAMILIES, "with vision"])
    def test_norm_and_head_are_what_hugging_face_does_behind_the_last_layer(self, family: str) -> None:
        module = FAMILIES[family]() if family in FAMILIES else gemma3_with_vision()
        model = load(module).model
        network, row_1S = model.network, torch.tensor([ROWS[2]])
        model.begin(1, 32)
        last = model.advance(row_1S, torch.tensor([row_1S.shape[1]]), taps=(Tap(LAYERS),)).states[Tap(LAYERS)]
        with torch.no_grad():
            plain = module(input_ids=row_1S, use_cache=False, output_hidden_states=True)
            normed = network.norm(last)
            close(normed, plain.hidden_states[-1])
            close(network.head(normed), plain.logits)
            assert network.head_weight.shape == (plain.logits.shape[-1], normed.shape[-1])
            assert torch.equal(network.embed(row_1S), module.get_input_embeddings()(row_1S))

    def test_who_watches_the_model_does_not_hear_of_it(self) -> None:
        module = FAMILIES["llama"]()
        network, state_BWX = load(module).model.network, torch.randn(1, 2, 32)
        module.register_forward_hook(lambda *_: pytest.fail("this is no step of the model"))
        network.head(network.norm(state_BWX))

    def test_the_fused_norm_is_the_model_s(self) -> None:
        pytest.importorskip("triton")
        from specdec.runtime.fuse import packed

        module, state_BWX = FAMILIES["llama"](), torch.randn(2, 3, 32)
        lean = packed(module, module.config)
        with torch.no_grad():
            close(lean.normed(state_BWX), module.model.norm(state_BWX))

    def test_a_loss_behind_the_head_reaches_what_is_before_it(self) -> None:
        module, state_BWX = FAMILIES["gemma3-hybrid"](), torch.randn(1, 2, 32, requires_grad=True)
        load(module).model.network.head(state_BWX).sum().backward()
        assert state_BWX.grad is not None and state_BWX.grad.abs().sum() > 0


class TestOutlet:
    """Norm and head on another device; another name of the same one stands in for it."""

    ELSEWHERE = torch.device("cpu", 0)

    def test_reads_out_as_the_model_does_with_weights_of_its_own(self, name: str) -> None:
        module = FAMILIES[name]()
        network = load(module).model.network
        state_BWX = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(5))
        outlet = network.outlet(self.ELSEWHERE)
        with torch.no_grad():
            logits_BWV = network.read_out(state_BWX)
            close(outlet.read_out(state_BWX), logits_BWV)
            tokens_BW, normed_BWX = torch.tensor([[3, 5]]), network.norm(state_BWX)
            close(outlet.norm(state_BWX), normed_BWX)
            close(outlet.head(normed_BWX), network.head(normed_BWX))
            close(outlet.embed(tokens_BW), network.embed(tokens_BW))
            assert outlet.depth == network.depth
            for weight in module.parameters():
                weight.mul_(2)
            assert not torch.allclose(network.read_out(state_BWX), logits_BWV)
            close(outlet.read_out(state_BWX), logits_BWV)

    def test_is_made_once_and_where_the_model_is_there_is_none(self) -> None:
        network = load(FAMILIES["llama"]()).model.network
        assert network.outlet(self.ELSEWHERE) is network.outlet(self.ELSEWHERE) is not network
        assert network.outlet(network.device) is network

    def test_an_early_exit_has_one_of_its_own(self) -> None:
        network = load(FAMILIES["llama"]()).model.network
        assert network.outlet(self.ELSEWHERE).depth == network.depth
        assert network.early_exit(2).outlet(self.ELSEWHERE).depth == 2


class Round:
    """One round of a ragged batch: a tree, and a verdict about it."""

    def __init__(self, name: str) -> None:
        self.module = FAMILIES[name]()
        self.verifier = FullVerifier(self.module)
        self.seq = Sequences.start(ROWS, 16)
        self.verifier.begin(self.seq, TAPS)
        self.draft = Draft(torch.tensor(NODES), torch.tensor(PARENTS), self.seq.lengths)
        depth = max(map(len, PATHS))
        path_BD = torch.tensor([[*path, *[-1] * (depth - len(path))] for path in PATHS])
        self.verdict = Verdict(path_BD, (path_BD >= 0).sum(1), torch.tensor([70, 71, 72]))
        self.taken = [[*row, *accepted(b)] for b, row in enumerate(ROWS)]

    def advice(self) -> Advice:
        advice = self.verifier.score(self.seq, self.draft).along(self.verdict)
        assert advice is not None
        return advice

    def check(self, advice: Advice, rows: list[list[int]], starts: list[int]) -> None:
        """Row b has a state for each position from ``starts[b]`` on, and only for those."""
        for b, row in enumerate(rows):
            real_K = advice.positions[b] >= 0
            assert advice.positions[b][real_K].tolist() == list(range(starts[b], len(row)))
            plain = plain_states(self.module, row)
            for tap in TAPS[:-1]:
                close(advice.states[tap][b][real_K], plain[tap.layer][starts[b] :])


def accepted(b: int) -> list[int]:
    return [NODES[b][node] for node in PATHS[b] if node >= 0]


class TestAdvice:
    def test_of_prompt_and_accepted_path(self, name: str) -> None:
        this = Round(name)
        advice = this.advice()
        assert advice.positions.shape == (3, 14 + 4)
        this.check(advice, this.taken, [0, 0, 0])

    def test_of_later_rounds_is_only_what_was_fed(self, name: str) -> None:
        this = Round(name)
        this.verifier.score(this.seq, Draft.empty(this.seq.lengths))
        this.check(this.advice(), this.taken, [len(row) - 1 for row in ROWS])

    def test_after_a_commit_starts_where_the_last_one_ended(self, name: str) -> None:
        this = Round(name)
        this.advice()
        seq = this.verifier.commit(this.seq, this.draft, this.verdict)
        evidence = this.verifier.score(seq, Draft.empty(seq.lengths))
        none_B0 = seq.lengths.new_empty(3, 0)
        advice = evidence.along(Verdict(none_B0, none_B0.sum(1), seq.lengths))
        assert advice is not None
        assert (advice.positions >= 0).sum(1).tolist() == [1, 1, 1]
        rows = [[*row, 70 + b] for b, row in enumerate(this.taken)]
        this.check(advice, rows, [len(row) - 1 for row in rows])

    def test_of_an_empty_draft_is_the_prompt_s(self, name: str) -> None:
        this = Round(name)
        none_B0 = this.seq.lengths.new_empty(3, 0)
        verdict = Verdict(none_B0, none_B0.sum(1), this.seq.lengths)
        advice = this.verifier.score(this.seq, Draft.empty(this.seq.lengths)).along(verdict)
        assert advice is not None
        this.check(advice, ROWS, [0, 0, 0])

    def test_is_none_where_nothing_was_asked_for(self) -> None:
        this = Round("llama")
        this.verifier.begin(this.seq)
        assert this.verifier.score(this.seq, this.draft).along(this.verdict) is None


class Reader:
    """Drafts with another drafter, and keeps every state it was advised of by its position."""

    def __init__(self, drafter: ModelDrafter | EarlyExitDrafter) -> None:
        self.drafter, self.wants = drafter, TAPS
        self.states: dict[tuple[Tap, int, int], Tensor] = {}

    def begin(self, target: FullVerifier, seq: Sequences) -> None:
        self.drafter.begin(target, seq)

    def draft(self, context: Context, noise: Noise) -> Draft:
        assert context.advice is not None
        for tap, state_BKH in context.advice.states.items():
            for b, positions in enumerate(context.advice.positions.tolist()):
                for k, position in enumerate(positions):
                    if position >= 0:
                        self.states[tap, b, position] = state_BKH[b, k]
        return self.drafter.draft(context, noise)


@pytest.mark.parametrize("width", [1, 3])
def test_a_whole_generation_advises_of_every_committed_token(name: str, width: int) -> None:
    module = FAMILIES[name]()
    reader = Reader(ModelDrafter(perturbed(module, 0.1), length=3, width=width))
    result = specdec.generate(FullVerifier(module), reader, ROWS, max_new_tokens=24)
    assert result.metrics.faults == {}
    for b, row in enumerate(ROWS):
        whole = [*row, *result.row(b)]
        plain = plain_states(module, whole)
        told = {position for tap, r, position in reader.states if r == b}
        # The last token of a row was never fed; nor was anyone told after the row's last round.
        assert told >= set(range(len(whole) - 4))
        for tap in TAPS[:-1]:
            for position in told & set(range(len(whole))):
                close(reader.states[tap, b, position], plain[tap.layer][position])
