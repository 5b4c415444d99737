"""The tasks: one file each, from the columns a task reads to the columns it writes. Nothing here knows of Ray.

A task is three steps over a group of rows, so that a worker can overlap them: `prepare` on the CPU (tokens, windows),
`compute` on the device, `finish` on the CPU (columns). What passes between them is the task's own affair. A task is
made for one tokenizer and one model's config; the model itself it meets in `compute` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, runtime_checkable

import pyarrow as pa

from pipeline.tasks.rows import Holds, RowResults

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from gpt2model.generation import Engine
    from pipeline.job import Step


class Task(Protocol):
    """What a worker and a plan need of a task."""

    @property
    def inputs(self) -> Mapping[str, Holds]:
        """Input names, each held by a column, and what such a column holds."""

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""

    def prepare(self, rows: pa.Table) -> Any:
        """Rows with the input columns -> what `compute` takes."""

    def num_tokens(self, prepared: Any) -> int:
        """Tokens that `compute` gives to the model."""

    def compute(self, model: Any, prepared: Any, runner: Any) -> Any:
        """Call the model; a row that can't be computed is noted, not raised."""

    def finish(self, prepared: Any, computed: Any) -> RowResults:
        """The result columns, errors and figures of the group."""

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """What a finished run says of the figures added up over all rows."""


@runtime_checkable
class Continuing(Protocol):
    """A task that continues rows by engines: its `compute` gets an EngineRunner instead of a PackRunner."""

    @property
    def by_engine(self) -> bool:
        """False where the task's options want packs after all."""

    def engine(
        self, model: Any, slots: int, cache_tokens: int, tokens_per_step: int, graphs: bool | None = None
    ) -> Engine:
        """What continues so many rows at once, within a cache of so many positions; `graphs` as Engine takes it."""


def by_engine(task: Task) -> TypeGuard[Continuing]:
    """Whether the task wants engines rather than packs."""
    return isinstance(task, Continuing) and task.by_engine


class TaskClass(Protocol):
    """What there is of a task before there is a checkpoint."""

    def architecture(self, options: Any, config: GPT2Config) -> str:
        """Name of the gpt2model class that computes it with a checkpoint of this config."""

    def __call__(self, options: Any, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config) -> Task:
        """The task; raises JobError for options that the checkpoint can't honour."""


def task_class(name: str) -> TaskClass:
    """The task of that name."""
    task: TaskClass = getattr(import_module(f"pipeline.tasks.{name}"), f"{name.capitalize()}Task")
    return task


def architecture_of(step: Step, config: GPT2Config) -> str:
    """Name of the gpt2model class that the step's task needs of a checkpoint with this config."""
    return task_class(step.task).architecture(step.options, config)


def make_task(
    step: Step, tokenizer: GPT2Tokenizer, config: GPT2Config, eos_token_id: tuple[int, ...] | None = None
) -> Task:
    """The task of a step, over its options; raises JobError for what the checkpoint can't honour.

    The eos tokens of the checkpoint's generation_config.json, where given, go before those of its config.json.
    """
    if eos_token_id is not None:
        config = config.replace(eos_token_id=eos_token_id)
    return task_class(step.task)(step.options, step.columns, tokenizer, config)
