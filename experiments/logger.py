"""Where the figures go besides the results folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from experiments.summary import ArmSummary

Curves = Callable[[int, Mapping[str, float]], object]  # of a step
COLUMNS = (
    "arm",
    "tokens_per_second",
    "speedup",
    "speedup_low",
    "speedup_high",
    "tokens_per_round",
    "identical",
    "target_share",
    "drafter_share",
    "host_share",
)


class Logger(Protocol):
    """Takes the figures of a run when it is over, and those of a training meanwhile."""

    def log(self, config: Mapping[str, Any], summaries: Sequence[ArmSummary], folder: Path) -> None:
        """Log a run: its configuration, its figures, and the folder that holds its plot."""
        ...

    def curves(self, config: Mapping[str, Any], folder: Path) -> AbstractContextManager[Curves]:
        """What takes the figures of a training as it goes on; in a folder that goes on, so do they."""
        ...


class NoLogger:
    """The results folder is enough."""

    def log(self, config: Mapping[str, Any], summaries: Sequence[ArmSummary], folder: Path) -> None:
        """Nothing."""

    @contextmanager
    def curves(self, config: Mapping[str, Any], folder: Path) -> Iterator[Curves]:
        """Nothing."""
        yield lambda step, found: None


class WandbLogger:
    """Weights & Biases: every figure of every arm in the run's summary, the table, and the plot.

    Args:
        project: its name there.
        mode: "offline" (no account needed; ``wandb sync`` sends it later), "online" or "disabled".

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(self, project: str, mode: str = "offline") -> None:
        try:
            self._wandb: Any = import_module("wandb")  # here: nobody else should wait for it, or need it
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("logger=wandb needs the package wandb: pip install wandb") from error
        self.project, self.mode = project, mode

    def log(self, config: Mapping[str, Any], summaries: Sequence[ArmSummary], folder: Path) -> None:
        """Log a run, with the configuration as it was resolved."""
        run = self._begun(config, folder)
        for summary in summaries:
            run.summary.update({f"{summary.arm}/{name}": value for name, value in figures(summary).items()})
        rows = [[summary.arm, *figures(summary).values()] for summary in summaries]
        run.log({"arms": self._wandb.Table(columns=list(COLUMNS), data=rows)})
        if (folder / "plot.png").exists():
            run.log({"plot": self._wandb.Image(str(folder / "plot.png"))})
        run.finish()

    @contextmanager
    def curves(self, config: Mapping[str, Any], folder: Path) -> Iterator[Curves]:
        """A curve for every figure of a training."""
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        run = self._begun(config, folder, id=name, resume="allow")
        try:
            yield lambda step, found: run.log(dict(found), step=step)
        finally:
            run.finish()

    def _begun(self, config: Mapping[str, Any], folder: Path, **more: Any) -> Any:
        settings = self._wandb.Settings(console="off", silent=True)
        self._wandb.setup(settings)  # what it says before a run exists is for other programs
        return self._wandb.init(
            project=self.project,
            mode=self.mode,
            dir=str(folder),
            config=dict(config),
            settings=settings,
            **more,
        )


def figures(summary: ArmSummary) -> dict[str, float | None]:
    """The figures of one arm that are worth a curve, by column name."""
    low, high = summary.speedup_interval or (None, None)
    values = (
        summary.tokens_per_second,
        summary.speedup,
        low,
        high,
        summary.accepted.tokens_per_round,
        None if summary.identical is None else summary.identical[0] / summary.identical[1],
        *(summary.shares[lane] for lane in ("target", "drafter", "host")),
    )
    return dict(zip(COLUMNS[1:], values, strict=True))
