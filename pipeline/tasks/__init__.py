"""The tasks: one file each, from the columns a task reads to the columns it writes. Nothing here knows of Ray.

A task is three steps over a group of rows, so that a worker can overlap them: `prepare` on the CPU (tokens, windows),
`compute` on the device, `finish` on the CPU (columns). What passes between them is the task's own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipeline.tasks.rows import RowResults

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from pipeline.batching import PackRunner
    from pipeline.job import Job


class Task(Protocol):
    """What a worker and a plan need of a task."""

    architecture: str
    """Name of the gpt2model class that computes it."""
    inputs: tuple[str, ...]
    """Input names, each held by a column."""

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""

    def accepts(self, kind: pa.DataType) -> bool:
        """Whether an input column may be of this type."""

    def check(self, tokenizer: GPT2Tokenizer, config: GPT2Config) -> None:
        """Raise JobError for options that this checkpoint can't honour."""

    def prepare(self, rows: pa.Table, tokenizer: GPT2Tokenizer, config: GPT2Config) -> Any:
        """Rows with the input columns -> what `compute` takes."""

    def num_tokens(self, prepared: Any) -> int:
        """Tokens that `compute` gives to the model."""

    def compute(self, model: Any, prepared: Any, runner: PackRunner) -> Any:
        """Call the model; a row that can't be computed is noted, not raised."""

    def finish(self, prepared: Any, computed: Any) -> RowResults:
        """The result columns, errors and figures of the group."""

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """What a finished run says of the figures added up over all rows."""


def make_task(job: Job) -> Task:
    """The task that the job names, over the job's options."""
    from pipeline.tasks.score import ScoreTask

    tasks = {"score": ScoreTask}
    options = getattr(job, job.task)
    return tasks[job.task](options, job.input.columns)
