"""From a configuration to a job."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from drafters import NullDrafter
from drafters.weights import located
from experiments.arms import BASELINES, PLAIN, Arm, Decoding, EngineArm
from experiments.job import Job
from specdec.channel import Process
from specdec.channel.pair import Rendezvous
from specdec.protocols import Forecast
from verifiers import FullVerifier

log = logging.getLogger(__name__)

Meet = Callable[[str], Rendezvous]


def build(config: DictConfig, drafter: str | None, meet: Meet | None = None) -> Job:
    """Load the target, the drafters and the prompts.

    Args:
        config: see conf/config.yaml.
        drafter: the chosen option of the group ``drafter``, which names a single arm.
        meet: where an arm's drafter is met, by the arm's name, if all are served elsewhere.

    Raises:
        ValueError: a value is missing or does not fit.
        OSError: there is no such model or file.
        hydra.errors.InstantiationException: what a part raised when it was made.
    """
    # Before the target, which takes longest to load.
    prompts = tuple(instantiate(config.data, _convert_="all"))
    weights_of(config, drafter, meet)
    decoding, _, _ = decoding_of(config), channel_of(config), forecast_of(config)
    verifier: FullVerifier = instantiate(config.verifier, _convert_="all")
    if any(prompt.chat for prompt in prompts) and not getattr(verifier.tokenizer, "chat_template", None):
        log.warning("the target has no chat template: prompts go in as text to continue")
    made = arms(config, drafter, verifier, meet)
    if config.fixed_width:
        verifier.width = widest(made)
    virtual = any(isinstance(arm, EngineArm) and arm.virtual for arm in made)
    return Job(verifier, made, prompts, decoding, config.seed, virtual)


def check(config: DictConfig) -> None:
    """Raises ValueError for values that are left to the user, and for numbers that are none."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be set: pass {missing[0]}=<value>")
    for key, least in (("max_new_tokens", 1), ("warmup", 0), ("seed", 0)):
        value = config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key} must be a whole number of at least {least}, not {value!r}")


def decoding_of(config: DictConfig) -> Decoding:
    """How to decode. Raises ValueError for what is no number of tokens, or no token ids."""
    stop = [] if config.stop is None else [config.stop] if isinstance(config.stop, int) else config.stop
    if isinstance(stop, str) or not all(isinstance(token, int) for token in stop):
        raise ValueError(f"stop must be a token id or a list of them, not {config.stop!r}")
    return Decoding(
        max_new_tokens=config.max_new_tokens,
        sampling=instantiate(config.sampling),
        acceptance=instantiate(config.acceptance),
        stop=tuple(stop),
    )


def arms(
    config: DictConfig, drafter: str | None, verifier: FullVerifier, meet: Meet | None = None
) -> tuple[Arm, ...]:
    """Plain decoding, the baselines, the drafters. Raises ValueError for names or an address that do not fit."""
    parts = drafters(config.get("drafter"), drafter)
    if len(parts) > 1 and config.get("forecast") is not None and config.channel.get("address") is not None:
        raise ValueError(f"at channel.address one drafter is awaited: choose one of {', '.join(parts)}")
    plain = EngineArm(PLAIN, verifier, NullDrafter(), channel=channel_of(config))
    made: list[Arm] = [plain, *baselines(config.baselines or (), verifier, plain.virtual)]
    made += [
        engine_arm(config, name, part, verifier, None if meet is None else meet(name))
        for name, part in parts.items()
    ]
    twice = [name for name, count in Counter(arm.name for arm in made).items() if count > 1]
    if twice:
        raise ValueError(f"two arms are called {twice[0]!r}")
    return tuple(made)


def engine_arm(
    config: DictConfig, name: str, part: Any, verifier: FullVerifier, at: Rendezvous | None = None
) -> EngineArm:
    """A drafter in turns with the target, or ahead of it on a channel of its own."""
    forecast, channel = forecast_of(config), channel_of(config, at)
    # Another process makes its drafter itself.
    elsewhere = forecast is not None and isinstance(channel, Process)
    drafter = instantiate(part, _convert_="all", _partial_=elsewhere)
    return EngineArm(name, verifier, drafter, forecast, channel)


def weights_of(config: DictConfig, drafter: str | None, meet: Meet | None = None) -> dict[str, list[Path]]:
    """Where the weights that a drafter names lie, by the arm's name.

    Drafters that are made elsewhere are left out: their files need not be on this machine.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: weights that are no string.
    """
    met = meet is not None or config.channel.get("address") is not None
    parts = {} if met and config.get("forecast") is not None else drafters(config.get("drafter"), drafter)
    found = {name: [place(name, file) for file in files(part)] for name, part in parts.items()}
    return {name: places for name, places in found.items() if places}


def place(arm: str, weights: Any) -> Path:
    """Where an arm's weights lie. Raises what ``weights_of`` does, with the arm's name."""
    if not isinstance(weights, str):
        raise ValueError(f"{arm}: weights must be the name of one trained head, in quotes if a number: {weights}")
    try:
        return located(weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{arm}: {error}; drafter=training_free needs none") from None


def files(part: Mapping[str, Any]) -> Iterator[Any]:
    """The weights that a drafter's configuration names, those of its parts too."""
    for name, value in part.items():
        if name == "weights" and value is not None:
            yield value
        elif isinstance(value, Mapping | DictConfig):
            yield from files(value)


def forecast_of(config: DictConfig) -> Forecast | None:
    """The forecast, None for drafting in turns. Raises ValueError where it lacks its trained exit."""
    forecast: Forecast | None = instantiate(config.get("forecast"), _convert_="all")
    if forecast is not None and forecast.exit is not None:
        forecast.exit.map  # noqa: B018 - read now
    return forecast


def channel_of(config: DictConfig, at: Rendezvous | None = None) -> Any:
    """A channel of an arm's own; with a place to meet the drafter at, if that is elsewhere."""
    if at is None:
        return instantiate(config.channel, _convert_="all")
    return instantiate(config.channel, _convert_="all", _partial_=True)(address=at)


def baselines(names: Sequence[str], verifier: FullVerifier, virtual: bool) -> list[Arm]:
    """Other ways to decode. On virtual time there are none: nobody says what they cost.

    Raises:
        ValueError: an unknown name.
    """
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"baselines must be among {', '.join(BASELINES)}, not {name!r}")
    if virtual and names:
        log.warning("%s has no virtual time and is left out", " and ".join(names))
    return [] if virtual else [BASELINES[name](name, verifier) for name in names]


def widest(arms: Sequence[Arm]) -> int:
    """Tokens of the widest verification: the last committed one and the largest draft.

    Raises:
        ValueError: a drafter does not say how large its drafts are.
    """
    widest = 1
    for arm in (arm for arm in arms if isinstance(arm, EngineArm)):
        size: int | None = getattr(arm.drafter, "size", None)
        if size is None:
            raise ValueError(f"fixed_width must know how large drafts get: give the drafter of {arm.name} a size")
        widest = max(widest, 1 + size)
    return widest


def drafters(node: Mapping[str, Any] | None, choice: str | None) -> dict[str, Any]:
    """The configuration of every drafter, by the arm's name; the plain arm is there without asking.

    Args:
        node: one drafter, or a mapping of them. A name set to null is left out.
        choice: what a single drafter is called.

    Raises:
        ValueError: something else.
    """
    if not node:
        return {}
    if not isinstance(node, Mapping | DictConfig):
        raise ValueError(f"drafter must be one of the group's options or a mapping, not {node!r}")
    if has_target(node):
        return {} if choice == PLAIN else {str(choice): node}
    wrong = [name for name, part in node.items() if part is not None and not has_target(part)]
    if wrong:
        raise ValueError(f"drafter.{wrong[0]} has no _target_, so it is no drafter")
    return {name: part for name, part in node.items() if part is not None}


def has_target(node: Any) -> bool:
    """Whether a configuration names something to make."""
    return isinstance(node, Mapping | DictConfig) and "_target_" in node
