"""A task's three steps, one after the other, over one group of rows; models to run them with."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

import gpt2model
from gpt2model import GPT2Config, GPT2Tokenizer
from pipeline.batching import PackRunner
from pipeline.tasks import Task
from pipeline.tasks.rows import RowResults


def answers(
    task: Task, model: Any, columns: dict[str, Any] | pa.Table, tokens_per_batch: int = 256, threads: int = 1
) -> tuple[list[dict[str, Any]], RowResults]:
    """The result columns as one dictionary a row, and all that the task gave back."""
    rows = columns if isinstance(columns, pa.Table) else pa.table(columns)
    prepared = task.prepare(rows)
    result = task.finish(prepared, task.compute(model, prepared, PackRunner(tokens_per_batch, threads)))
    table = pa.Table.from_arrays(list(result.columns), schema=pa.schema(task.fields))
    table.validate(full=True)
    assert table.num_rows == rows.num_rows
    return table.to_pylist(), result


def saved_model(name: str, folder: Path, checkpoint: Path, **options: Any) -> Any:
    """A model of that class with wide random weights and `checkpoint`'s tokenizer, saved to `folder` and loaded."""
    config = GPT2Config.from_pretrained(checkpoint).replace(**options)
    torch.manual_seed(3)
    model = getattr(gpt2model, name)(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    GPT2Tokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return type(model).from_pretrained(folder).requires_grad_(False)
