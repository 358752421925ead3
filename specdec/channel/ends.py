"""What a connection to a drafter's process holds, and how it is let go."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from specdec.channel.child import end
from specdec.channel.pair import Pair, Rendezvous
from specdec.channel.serve import AWAITED
from specdec.messages import Closing

HANDSHAKE = 2.0  # seconds for a drafter that has come to be met before the connection is closed


@dataclass
class Ends:
    """What a connection holds that does not end by itself.

    Attributes:
        at: where both sides meet.
        over: that nobody is waited for any more.
        meeting: waits for the drafter.
        child: the drafter's process, if it was started here.
        pair: the connection, if there is one.
    """

    at: Rendezvous | None
    over: threading.Event = field(default_factory=threading.Event)
    meeting: threading.Thread | None = None
    child: subprocess.Popen[bytes] | None = None
    pair: Pair | None = None


def finish(ends: Ends) -> None:
    """Tell the drafter that it is not needed any more, and keep neither it nor the place to meet it.

    Takes up to a minute where one came and was gone before it was met: gloo waits for it.
    """
    ends.over.set()
    if ends.meeting is not None:
        ends.meeting.join(HANDSHAKE)  # who has come by now is met
    told = ends.pair
    dismiss(told)
    if ends.child is not None:
        end(ends.child)
    if ends.meeting is not None:
        ends.meeting.join()
    if ends.pair is not told:  # met in the meantime
        dismiss(ends.pair)
    if ends.pair is not None:
        ends.pair.close()
    if ends.at is not None:
        with suppress(RuntimeError):  # a store that others keep may be gone
            ends.at.store.delete_key(AWAITED)
    ends.pair = ends.at = None


def dismiss(pair: Pair | None) -> None:
    """Tell a drafter that it is not needed any more."""
    if pair is not None and not pair.ended:
        with suppress(ConnectionError):
            pair.send(Closing())
