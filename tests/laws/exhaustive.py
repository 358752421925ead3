"""Every outcome of a random program, with its probability, by running the program itself.

The rows of a batch are different outcomes: each follows its own script of choices. Where a script ends, the row
takes the first possible choice, and the others become scripts of the next batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from specdec import tree
from specdec.guard import Guarded
from specdec.loop import serial
from specdec.noise import Lane, Noise
from specdec.report import Step
from specdec.runtime.model import Scores
from specdec.sampling import Sampling
from specdec.sequences import Sequences
from specdec.trace import Trace

Distribution = dict[tuple[int, ...], float]

# What rounding makes of a chance of zero. Networks round a row otherwise in another batch, and a choice that is
# there in one of them only would shift all that a script says behind it.
ROUNDING = 1e-13


class Scripted(Noise):
    """Noise whose every answer is a branch: `accepts` of two, `draw` of as many as the law has tokens.

    A chance of no more than ``least`` is none. Where a network rounds in single precision, and not alike in every
    batch, whether a chance is 0 would else depend on the batch.
    """

    def __init__(self, scripts: list[tuple[int, ...]], limit: int, coupled: bool, least: float = 0) -> None:
        self.scripts, self.limit, self.coupled, self.least = scripts, limit, coupled, least
        self.taken: list[list[int]] = [[] for _ in scripts]
        self.weight = [1.0] * len(scripts)
        self.others: list[tuple[int, ...]] = []
        self.active = [True] * len(scripts)

    def listen(self, steps: list[Step]) -> None:
        """Rows that have ended branch no more."""
        self.active = [not step.ended for step in steps]

    def choose(self, row: int, chances: list[float]) -> int:
        if not self.active[row]:
            return 0
        script, taken = self.scripts[row], self.taken[row]
        possible = [option for option, chance in enumerate(chances) if chance > max(self.least, ROUNDING)]
        if len(possible) == 1:  # no choice, and so no place in the script
            return possible[0]
        if len(taken) < len(script):
            choice = script[len(taken)]
        else:
            choice = possible[0]
            self.others += [(*taken, other) for other in possible[1:]]
        taken.append(choice)
        self.weight[row] *= chances[choice]
        return choice

    def accepts(self, chance: Tensor, positions: Tensor, index: int = 0) -> Tensor:
        chance = chance.expand_as(positions).clamp(0, 1)
        answers = [[self.choose(b, [1 - c, c]) for c in row] for b, row in enumerate(chance.tolist())]
        return torch.tensor(answers, dtype=torch.bool).reshape(positions.shape)

    def draw(self, laws: Tensor, positions: Tensor, lane: Lane = Lane.TARGET, index: int = 0) -> Tensor:
        laws = laws / laws.sum(-1, keepdim=True)
        answers = [[self.choose(b, law) for law in row] for b, row in enumerate(laws.flatten(1, -2).tolist())]
        return torch.tensor(answers).reshape(positions.shape)

    def race(self, laws: Tensor, positions: Tensor) -> Tensor:
        # Shared noise couples drafter and target; what the target draws is lossless under any coupling.
        return self.draw(laws, positions)

    def propose(self, laws: Tensor, lengths: Tensor, depth: int, sibling: int = 0) -> Tensor:
        positions = lengths + depth
        # The last token of a row is the target's: what is drafted there, if anything, makes no difference.
        dead = positions >= self.limit - 1
        first = torch.zeros_like(laws).scatter_(-1, laws.argmax(-1, keepdim=True), 1)
        return self.draw(torch.where(dead[..., None], first, laws), positions)


class TableModel:
    """A model whose next token depends on the last two: logits [V, V, V]. Stands in for a ``CachedModel``."""

    remembers = True

    def __init__(self, table: Tensor) -> None:
        self.table, self.vocab_size, self.device = table, table.shape[-1], table.device
        self.network = SimpleNamespace(depth=2)

    @classmethod
    def random(cls, vocabulary: int, seed: int, sharpness: float = 1.5) -> TableModel:
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(3 * (vocabulary,), generator=generator, dtype=torch.float64)
        return cls(sharpness * table)

    def early_exit(self, layers: int) -> TableModel:
        return TableModel(self.table / 2 + TableModel.random(self.vocab_size, layers).table / 2)

    def begin(self, *_: object) -> None: ...

    def keep(self, *_: Tensor) -> None: ...

    def remember(self) -> None: ...

    def hang(self, *_: object) -> None: ...

    def advance(self, tokens_BS, lengths_B, nodes=None, taps=(), behind=None, chain=False, glance=None, reads=0):
        last_B2 = tokens_BS.gather(1, torch.stack([(lengths_B - 2).clamp(min=0), lengths_B - 1], 1))
        self.tokens_BM, self.before_B = last_B2[:, 1:], last_B2[:, :1]
        root_B1V = self.table[self.before_B, self.tokens_BM]
        if nodes is None or nodes[0].shape[1] == 0:
            return Scores(root_B1V)
        # Behind padding only one token is possible, so that padding adds no branches.
        only = torch.full_like(root_B1V[0, 0], -torch.inf).index_fill_(0, torch.tensor(0), 0)
        nodes_BNV = torch.where((nodes[1] == tree.PAD)[..., None], only, self.grow(*nodes))
        return Scores(torch.cat([root_B1V, nodes_BNV], 1))

    def grow(self, tokens_BW, parents_BW, chain=False):
        self.tokens_BM = torch.cat([self.tokens_BM, tokens_BW], 1)
        above_BW = self.tokens_BM.gather(1, parents_BW.clamp(min=-1) + 1)
        return self.table[above_BW, tokens_BW]


def distribution(
    make_drafter: Callable[[], object],
    target,
    rule,
    prompt: list[int],
    new_tokens: int,
    sampling: Sampling,
    least: float = 0,
    rows: int = 8192,
) -> Distribution:
    """The law of the new tokens that the production loop commits, exactly.

    ``rows`` is the most in a batch: 1 where a row's drafts depend on the others, since a script must then mean the
    same in every batch.
    """
    law: Distribution = defaultdict(float)
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        batch, scripts = scripts[:rows], scripts[rows:]
        noise = Scripted(batch, len(prompt) + new_tokens, rule.coupled, least)
        seq = Sequences.start([prompt] * len(batch), new_tokens, (), sampling)
        trace = Trace(listener=noise.listen)
        drafter = Guarded(make_drafter(), trace)
        drafter.begin(target, seq)
        target.begin(seq, drafter.wants)
        seq = serial(seq, drafter, target, rule, noise, trace)
        assert not trace.faults, trace.faults
        for row, tokens in enumerate(seq.tokens[:, len(prompt) :].tolist()):
            law[tuple(tokens)] += noise.weight[row]
        scripts += noise.others
    return law


def autoregressive(model: TableModel, prompt: list[int], new_tokens: int, sampling: Sampling) -> Distribution:
    """The law of plain decoding, by the chain rule."""
    law: Distribution = {(): 1.0}
    for _ in range(new_tokens):
        longer: Distribution = {}
        for tokens, weight in law.items():
            context = torch.tensor([[*prompt, *tokens]])
            logits = model.advance(context, torch.tensor([context.shape[1]])).logits[0, 0]
            seen = torch.zeros(model.vocab_size, dtype=torch.bool)
            seen[context[0]] = True
            for token, chance in enumerate(sampling.law(logits, seen).tolist()):
                if chance > 0:
                    longer[*tokens, token] = weight * chance
        law = longer
    return law


def total_variation(one: Distribution, other: Distribution) -> float:
    return sum(abs(one.get(key, 0) - other.get(key, 0)) for key in {*one, *other}) / 2
