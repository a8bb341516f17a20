"""What watches a run: a progress bar with the time left, and the guard that stops a run that diverges."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .specialize_data import SpecializeError

FAR = 1.5  # times the first held-out loss, plus half a nat: no learning rate that works passes here


class DivergedError(SpecializeError):
    """The loss is not a number, or far above where it began."""


class Divergence(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked
    """Stops a run whose loss is NaN, infinite or far above the base's held-out loss."""

    def __init__(self) -> None:
        self.start: float | None = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **kwargs: object,
    ) -> None:  # fmt: skip
        for loss in [logs[key] for key in ("eval_loss", "loss") if logs and key in logs]:
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} at step {state.global_step}: lower --lr, or look at the data")
            if "eval_loss" not in (logs or {}):
                continue
            if self.start is None:
                self.start = self._first(state, loss)
            if loss > FAR * self.start + 0.5:
                raise DivergedError(
                    f"the held-out loss is {loss:.2f} at step {state.global_step}, it began at {self.start:.2f}: "
                    "lower --lr, or look at the data"
                )

    @staticmethod
    def _first(state: TrainerState, loss: float) -> float:
        """A resumed run is measured against where it began, not where it was cut off."""
        return next((float(entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry), loss)


class Progress(TrainerCallback):  # type: ignore[misc]  # as above
    """A bar on a terminal, nothing in a pipe."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True)
        self._task: TaskID | None = None
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True), console=console,
            disable=quiet or not console.is_terminal, transient=True,
        )  # fmt: skip

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._bar.start()
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **kwargs: object,
    ) -> None:  # fmt: skip
        if self._task is not None and logs and "eval_loss" in logs:
            self._bar.update(self._task, description=f"training, held-out loss {logs['eval_loss']:.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._bar.stop()
