"""What a drafter prepares and what a channel brings may be malformed: it costs drafts, never a token."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from families import FAMILIES

import specdec
from drafters import ModelDrafter, NullDrafter
from specdec import Coupled, Draft, Sampling
from specdec.channel import Inline, Thread
from specdec.channel.inline import InlineLink
from specdec.channel.sides import worker_for
from specdec.forecast import DraftTopK
from specdec.messages import Window
from verifiers import FullVerifier

ROWS = [[1, 2, 3], [9]]
OPTIONS = {"max_new_tokens": 14, "sampling": Sampling(temperature=0.7), "acceptance": Coupled(), "seed": 1}
OTHERS = {
    "nothing": lambda draft: None,
    "laws of another width": lambda draft: replace(draft, laws=torch.ones(*draft.tokens.shape, 125) / 125),
    "laws of fewer nodes": lambda draft: replace(draft, laws=torch.ones(len(draft.base), 1, 128) / 128),
    "laws of integers": lambda draft: replace(draft, laws=torch.ones(*draft.tokens.shape, 128).long()),
    "small integers": lambda draft: replace(draft, tokens=draft.tokens.int()),
    "fewer rows": lambda draft: Draft(draft.tokens[:1], draft.parents[:1], draft.base[:1]),
    "no rows of its own": lambda draft: replace(draft, tokens=draft.tokens[0]),
    "another base": lambda draft: replace(draft, base=draft.base[:, None]),
    "no children at all": lambda draft: replace(draft, fanout=0),
}


def spoiled(part, spoil):
    class Spoiled(ModelDrafter):
        pass

    setattr(Spoiled, part, lambda self, *arguments: spoil(getattr(ModelDrafter, part)(self, *arguments)))
    return Spoiled


@pytest.mark.parametrize("fault", OTHERS)
@pytest.mark.parametrize("channel", [Inline(), Thread(patience=60)], ids=["inline", "thread"])
def test_a_malformed_branch_costs_what_was_prepared(tiny_target, channel, fault):
    plain = specdec.generate(FullVerifier(tiny_target), NullDrafter(), ROWS, **OPTIONS)
    drafter = spoiled("branch", OTHERS[fault])(FAMILIES["llama"](), length=3)
    result = specdec.generate(
        FullVerifier(tiny_target), drafter, ROWS, forecast=DraftTopK(4), channel=channel, **OPTIONS
    )
    assert torch.equal(result.tokens, plain.tokens)
    assert result.metrics.faults and all("Spoiled: raised" in message for message in result.metrics.faults)
    assert not result.metrics.hit_rate
    assert result.metrics.mean_accepted_tokens > 2, "its drafts were good"


@pytest.mark.parametrize("spoil", [lambda own: own[..., :-3], lambda own: own[:, 1:], lambda own: own.long()])
def test_a_malformed_look_is_said(tiny_target, spoil):
    drafter = spoiled("look", spoil)(tiny_target, length=3)
    result = specdec.generate(FullVerifier(tiny_target), drafter, ROWS, forecast=DraftTopK(4), **OPTIONS)
    assert any("look must give floats" in message for message in result.metrics.faults)


class Damaging(InlineLink):
    """Spoils the window of every second round."""

    def __init__(self, worker, spoil):
        super().__init__(worker)
        self._spoil = spoil

    def receive(self, timeout):
        message = super().receive(timeout)
        return self._spoil(message) if isinstance(message, Window) and message.round % 2 else message


class Through(Inline):
    """A channel over such a link."""

    def __init__(self, spoil):
        object.__setattr__(self, "spoil", spoil)

    @contextmanager
    def link(self, drafter, forecast, verifier, clock):
        yield Damaging(worker_for(drafter, forecast, verifier, clock), self.spoil)


def inside(spoil):
    return lambda window: replace(window, draft=spoil(window.draft))


WINDOWS = {
    **{name: inside(spoil) for name, spoil in OTHERS.items() if name != "nothing"},
    "hits of other rows": lambda window: replace(window, hit=window.hit[:1]),
    "hits that are numbers": lambda window: replace(window, hit=window.hit.long()),
}


@pytest.mark.parametrize("fault", WINDOWS)
def test_a_malformed_window_costs_a_round(tiny_target, fault):
    plain = specdec.generate(FullVerifier(tiny_target), NullDrafter(), ROWS, **OPTIONS)
    result = specdec.generate(
        FullVerifier(tiny_target),
        ModelDrafter(FAMILIES["llama"](), length=3),
        ROWS,
        forecast=DraftTopK(4),
        channel=Through(WINDOWS[fault]),
        **OPTIONS,
    )
    assert torch.equal(result.tokens, plain.tokens)
    faults = {message for message in result.metrics.faults if "gave a window that is none" in message}
    assert faults == set(result.metrics.faults) != set()
    assert result.metrics.mean_accepted_tokens > 1.5, "the others were good"
