"""The two processes that torchrun starts: rank 0 runs the job as the target's side, rank 1 serves its drafters."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from torch import distributed

from experiments.build import drafters
from specdec.channel import Process
from specdec.channel.pair import Rendezvous, interface
from specdec.channel.serve import Service, attend
from specdec.channel.sides import absent, assembled, borrows, device_of
from specdec.runtime.loading import load_tokenizer, pick_device
from specdec.worker import Absent, DraftWorker
from verifiers import FullVerifier

SIDES = 2
# In the store: the drafters' side's network interface, that the job has ended, and that the drafters' side has.
INTERFACE, ENDED, LEFT = "interface", "ended", "left"
PAUSE = 0.05  # seconds between two looks whether the job has ended
FAREWELL = timedelta(seconds=2)


@dataclass(frozen=True)
class Ranks:
    """One of the two processes.

    Attributes:
        store: that torchrun gives both.
        host: address of this side's network interface.
        drafting: whether this is the drafters' side.
        local: number of this process on its machine.
    """

    store: distributed.Store
    host: str
    drafting: bool
    local: int

    @classmethod
    @contextmanager
    def joined(cls, environment: Mapping[str, str]) -> Iterator[Ranks]:
        """Meet the other process; when the target's side leaves, the other is told.

        Raises:
            ValueError: there are not two of them.
        """
        size = int(environment["WORLD_SIZE"])
        if size != SIDES:
            raise ValueError(
                f"torchrun must start 2 processes, one for the target and one for drafters, not {size}"
            )
        if HydraConfig.get().mode != RunMode.RUN:
            raise ValueError("under torchrun one command is one run: leave --multirun out")
        store, rank, _ = next(distributed.rendezvous("env://"))
        if rank == 1:
            host = interface(environment["MASTER_ADDR"])
            store.set(INTERFACE, host)
        else:  # what a machine calls itself may be an address that only it can reach
            host = interface(store.get(INTERFACE).decode())
        try:
            yield cls(store, host, rank == 1, int(environment["LOCAL_RANK"]))
        finally:
            if rank == 0:
                part(store)

    def check(self, config: DictConfig) -> None:
        """Raises ValueError for a job that has nothing for the other side to do."""
        ahead = config.get("forecast") is not None and issubclass(get_class(config.channel._target_), Process)
        if not ahead:
            raise ValueError("torchrun is for drafting ahead: pass channel=process and a forecast")
        if config.channel.address is not None:
            raise ValueError("under torchrun both sides find each other: leave channel.address out")

    def meet(self, arm: str) -> Rendezvous:
        """Where an arm's drafter and the target meet."""
        # On a connection of its own: who waits for the other side there holds up nobody else.
        store: Any = self.store
        return Rendezvous(distributed.PrefixStore(f"arm {arm}", store.clone()), self.host)

    @property
    def ended(self) -> bool:
        """Whether the job has, or its process."""
        try:
            return self.store.check([ENDED])
        except RuntimeError:  # who kept the store is gone
            return True

    def serve(self, config: DictConfig, drafter: str | None) -> int:
        """Serve every arm's drafter until the job has ended, and leave with status 0. Ctrl-C is the target's."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._serve_all, args=(placed(config, self.local), drafter), daemon=True).start()
        while not self.ended:
            time.sleep(PAUSE)
        with suppress(RuntimeError):
            self.store.set(LEFT, "")
        os._exit(0)  # threads still load, or listen to connections that are over

    def _serve_all(self, config: DictConfig, drafter: str | None) -> None:
        @cache
        def target() -> FullVerifier:
            made: FullVerifier = instantiate(config.verifier, _convert_="all")
            return made

        # One after another: how models are loaded is a matter of the whole process.
        for name, node in drafters(config.get("drafter"), drafter).items():
            service = Service(partial(worker, config, node, target))
            threading.Thread(target=attend, args=(service, self.meet(name)), name=name, daemon=True).start()


def part(store: distributed.Store) -> None:
    """Tell the other side that the job has ended; this one may keep the store, so it leaves last."""
    with suppress(RuntimeError):
        store.set(ENDED, "")
        store.wait([LEFT], FAREWELL)


def worker(config: DictConfig, node: Any, target: Callable[[], FullVerifier]) -> DraftWorker:
    """A drafter's side, made from the configuration. The target is loaded only for who borrows from it."""
    forecast, drafter = instantiate(config.forecast, _convert_="all"), instantiate(node, _convert_="all")
    if borrows(drafter):
        return assembled(drafter, forecast, absent(drafter, target()))
    device = device_of(drafter, pick_device(config.device))
    unknown = 0  # the vocabulary's width; an opening tells
    return assembled(drafter, forecast, Absent(unknown, device, load_tokenizer(config.target)))


def placed(config: DictConfig, local: int) -> DictConfig:
    """The configuration for a process of torchrun: ``auto`` is the GPU of its number."""
    if config.device == "auto" and torch.cuda.is_available():
        config = config.copy()
        config.device = f"cuda:{local}"
    return config
