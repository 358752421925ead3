"""How the two sides of a pipeline talk."""

from specdec.channel.inline import Inline
from specdec.channel.thread import Thread

__all__ = ["Inline", "Thread"]
