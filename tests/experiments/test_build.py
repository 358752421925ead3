"""What a job is made of, where the configuration alone does not say it."""

from __future__ import annotations

from typing import Any

import pytest

from drafters import EarlyExitDrafter, NgramDrafter, NullDrafter
from experiments.arms import EngineArm, HuggingFaceArm
from experiments.build import widest


def arm(name: str, drafter: Any) -> EngineArm:
    unused: Any = None
    return EngineArm(name, unused, drafter)


def test_the_widest_verification_holds_the_largest_draft() -> None:
    unused: Any = None
    others = [HuggingFaceArm("hf_generate", unused), arm("plain", NullDrafter())]
    assert widest(others) == 1
    assert widest([*others, arm("ngram", NgramDrafter(length=6)), arm("tree", EarlyExitDrafter(width=2))]) == 11


def test_a_drafter_that_does_not_say_is_named() -> None:
    with pytest.raises(ValueError, match="give the drafter of mine a size"):
        widest([arm("plain", NullDrafter()), arm("mine", object())])
