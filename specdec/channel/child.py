"""A process that the target's side starts for the drafter, and what it is handed through its standard input."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from specdec.channel.pair import Rendezvous
from specdec.channel.serve import PREFACE, WANTED, Assembly
from specdec.runtime import CachedModel


def started(at: Rendezvous) -> subprocess.Popen[bytes]:
    """A process that waits for what it is to serve; Ctrl-C does not reach it, it ends when its connection does."""
    store: Any = at.store  # one that this process has opened, so it has a port
    store.delete_key(WANTED)
    preface = PREFACE.format(path=sys.path, address=f"{at.host}:{store.port}", target=os.getpid())
    return subprocess.Popen([sys.executable, "-c", preface], stdin=subprocess.PIPE, start_new_session=True)


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process: it has a second to do so by itself."""
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


@contextmanager
def sharing_cores(device: torch.device | None) -> Iterator[None]:
    """Two processes that compute on one CPU take half of its threads each: more would wait for one another."""
    threads = torch.get_num_threads()
    if device is not None and device.type == "cpu":
        torch.set_num_threads(max(1, threads - threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Delivery:
    """Hands a process the drafter's side, and the target's network if the drafter there asks for it.

    Args:
        child: takes it.
        at: where it says that it wants the network.
        assembly: the drafter's side.
        network: the target's; None where it is out of the drafter's reach.

    Raises:
        ConnectionError: the process has ended.
        ValueError: the drafter's side cannot be sent.
    """

    def __init__(
        self, child: subprocess.Popen[bytes], at: Rendezvous, assembly: Assembly, network: CachedModel | None
    ) -> None:
        stream: Any = child.stdin
        self._stream, self._at, self._network = stream, at, network
        self._parcels = pickle.Pickler(stream)  # one for both: what they share goes once
        self._hand(assembly)

    def go_on(self) -> None:
        """Hand over the network, once it is wanted. Raises what making this raises."""
        if not self._stream.closed and self._at.store.check([WANTED]):
            self._hand(self._network)
            self.close()

    def close(self) -> None:
        """Nothing follows."""
        with suppress(OSError):
            self._stream.close()

    def _hand(self, parcel: object) -> None:
        try:
            self._parcels.dump(parcel)
            self._stream.flush()
        except OSError as error:
            self.close()
            raise ConnectionError(f"the drafter's process has ended before it began: {error}") from error
        except Exception as error:  # whatever a part of it raises that cannot be sent
            self.close()
            raise ValueError(f"the drafter cannot be sent to another process: {error}") from error
