"""What heads learn from is what their papers say, and once learned it is accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, VOCABULARY, plain_greedy, random_prompt
from published_heads import Named, hydra_says, medusa_says, redrafter_says, scattered
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import specdec
from drafters import HydraDrafter, MedusaDrafter, ReDrafter
from drafters.checkpoint import fill
from drafters.hydra import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.redrafter import TAUGHT, RecurrentHead
from specdec import Tap
from specdec.runtime import load
from specdec.runtime.huggingface import Network
from verifiers import FullVerifier

X, V = 32, VOCABULARY
ROWS = [random_prompt(9, seed=1), random_prompt(6, seed=2)]
FRESH: dict[str, Callable[[Network], nn.Module]] = {
    "medusa": MedusaHeads.fresh,
    "hydra": HydraHeads.fresh,
    "redrafter": RecurrentHead.fresh,
    "shared medusa": lambda target: MedusaHeads.fresh(target, shared_head=True),
    "shared hydra": lambda target: HydraHeads.fresh(target, shared_head=True),
    "shared redrafter": lambda target: RecurrentHead.fresh(target, shared_head=True),
}
DRAFTERS: dict[str, Any] = {"medusa": MedusaDrafter, "hydra": HydraDrafter, "redrafter": ReDrafter}


@pytest.fixture(scope="module")
def target() -> FullVerifier:
    verifier = FullVerifier(FAMILIES["llama"]())
    verifier.model.network.module.requires_grad_(False)
    return verifier


def read(target: FullVerifier, rows: list[list[int]]) -> tuple[dict[Tap, Tensor], Tensor, Tensor]:
    """States behind the last layer, tokens, and which places have a next token that counts, padding included."""
    longest = max(map(len, rows))
    tokens_BS = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    lengths_B, tap = torch.tensor([len(row) for row in rows]), Tap(target.model.network.depth)
    target.model.begin(len(rows), longest)
    scores, index_S = target.model.advance(tokens_BS, lengths_B, taps=(tap,)), torch.arange(longest)
    assert scores.positions is not None
    real_BS = scores.positions >= 0
    state_BSX = torch.zeros_like(scores.states[tap])
    state_BSX[index_S < lengths_B[:, None]] = scores.states[tap][real_BS]
    return {tap: state_BSX}, tokens_BS, (index_S >= 1) & (index_S < lengths_B[:, None] - 1)


def by_hand(
    says: Callable[..., Tensor], named: Named, target: FullVerifier, distil: bool, levels: int
) -> list[float]:
    """Each head's mean over all places, one at a time, from Hugging Face's own states and laws."""
    module = target.model.network.module
    embeddings, found = module.get_input_embeddings().weight, []
    for k in range(levels):
        each = []
        for row in ROWS:
            answer = module(input_ids=torch.tensor([row]), use_cache=False, output_hidden_states=True)
            state_SX, logits_SV = answer.hidden_states[-1][0], answer.logits[0]
            for s in range(len(row) - 2 - k):
                if s + k + 1 < 1:
                    continue
                said_V = says(named, state_SX[s], embeddings[row[s + 1 : s + k + 2]])
                goal = logits_SV[s + k + 1].softmax(-1) if distil else torch.tensor(row[s + k + 2])
                each.append(float(cross_entropy(said_V[None], goal[None])))
        found.append(sum(each) / len(each))
    return found


def filled(heads: Any, named: Named, part: str = "") -> Any:
    fill(heads.heads if part else heads, lambda name, shape: named[name])
    return heads


def named_for(heads: nn.Module) -> Named:
    return scattered({name: tuple(weight.shape) for name, weight in heads.named_parameters()})


def test_medusa_s_loss(target: FullVerifier) -> None:
    heads = MedusaHeads(X, V, heads=3)
    named = named_for(heads.heads)
    expected = by_hand(medusa_says, named, target, distil=False, levels=3)
    losses = filled(heads, named, "heads").losses(*read(target, ROWS), target.model.network)
    got = [losses[f"head {k + 1}"].item() / 0.8 ** (k + 1) for k in range(3)]
    assert got == pytest.approx(expected, rel=1e-4) and len(losses) == 3


def test_hydra_s_loss(target: FullVerifier) -> None:
    heads = HydraHeads(X, V, heads=3, layers=2)
    named = named_for(heads)
    expected = by_hand(hydra_says, named, target, distil=False, levels=3)
    losses = filled(heads, named).losses(*read(target, ROWS), target.model.network)
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-4)


def test_redrafter_s_loss(target: FullVerifier) -> None:
    heads = RecurrentHead(X, V, 24)
    named = named_for(heads)
    expected = by_hand(redrafter_says, named, target, distil=True, levels=TAUGHT)
    losses = filled(heads, named).losses(*read(target, ROWS), target.model.network)
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", FRESH)
def test_places_that_do_not_count_do_not_matter(kind: str, target: FullVerifier) -> None:
    heads: Any = FRESH[kind](target.model.network)
    states, tokens_BS, wanted_BS = read(target, ROWS)
    some = wanted_BS & (torch.arange(len(ROWS[0])) < 4)
    losses = heads.losses(states, tokens_BS, some, target.model.network)
    other = heads.losses(
        states, torch.where(torch.arange(len(ROWS[0])) > 4, 7, tokens_BS), some, target.model.network
    )
    assert {name: loss.item() for name, loss in losses.items()} == {
        name: loss.item() for name, loss in other.items()
    }
    nothing = heads.losses(states, tokens_BS, wanted_BS & False, target.model.network)
    assert all(loss.item() == 0 for loss in nothing.values())


@pytest.mark.parametrize("kind", FRESH)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fresh_heads_say_what_the_target_does(kind: str, family: str) -> None:
    module = FAMILIES[family]()
    network = load(module).model.network
    heads: Any = FRESH[kind](network)
    with torch.no_grad():
        answer = module(input_ids=torch.tensor(ROWS[:1]), use_cache=False, output_hidden_states=True)
        memory = heads.start(answer.hidden_states[-1])
        for level in range(3):
            memory = heads.read(level, memory, torch.tensor(ROWS[:1]), network)
            torch.testing.assert_close(heads.say(level, memory, network), answer.logits, rtol=1e-4, atol=1e-4)
    assert {weight.dtype for weight in heads.parameters()} == {torch.float32}
    assert all(weight.requires_grad for weight in heads.parameters())
    assert not {weight.data_ptr() for weight in heads.parameters()} & {w.data_ptr() for w in module.parameters()}


@pytest.mark.parametrize("kind", FRESH)
def test_what_was_learned_is_accepted_and_costs_no_token(kind: str, target: FullVerifier) -> None:
    network, module = target.model.network, target.model.network.module
    prompts = [random_prompt(6, seed=seed) for seed in range(8)]
    answers = [plain_greedy(module, prompt, 24) for prompt in prompts]
    with torch.inference_mode():  # as a trainer gathers them
        states, tokens_BS, wanted_BS = read(target, [[*p, *a] for p, a in zip(prompts, answers, strict=True)])
    heads: Any = FRESH[kind](network)
    optimiser, path = torch.optim.AdamW(heads.parameters(), lr=3e-3), []
    for _ in range(60):
        optimiser.zero_grad()
        loss = torch.stack(list(heads.losses(states, tokens_BS, wanted_BS, network).values())).sum()
        loss.backward()
        optimiser.step()
        path.append(loss.item())
    assert path[-1] < 0.9 * path[0]
    assert all(weight.grad is None for weight in module.parameters()), "the target does not learn"
    drafter = DRAFTERS[kind.split()[-1]](heads, length=3)
    result = specdec.generate(target, drafter, prompts, max_new_tokens=24)
    assert [result.row(b) for b in range(len(prompts))] == answers and not result.metrics.faults
    assert result.metrics.mean_accepted_tokens > 1
