"""How the two sides of a pipeline talk."""

from specdec.channel.inline import Inline
from specdec.channel.process import Process
from specdec.channel.serve import serve_drafter
from specdec.channel.simulated import Simulated
from specdec.channel.thread import Thread

__all__ = ["Inline", "Process", "Simulated", "Thread", "serve_drafter"]
