"""What is worth counting of a step's result columns, by what they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from pipeline.report.histogram import Floats
from pipeline.report.measures import Directions, Extremes, Labels, Measure, Numbers
from pipeline.report.steps import Step

TITLES = {
    "loglikelihood": "Log-likelihood of a row",
    "num_tokens": "Scored tokens of a row",
    "perplexity": "Perplexity of a row",
    "bits_per_byte": "Bits per byte",
    "is_greedy": "Is the completion the greedy one?",
    "token_logprobs": "Log-probability of a token",
    "num_prompt_tokens": "Tokens of a prompt",
    "num_generated_tokens": "Generated tokens",
    "generated_logprobs": "Log-probability of a generated token",
    "finish_reason": "Why generation ended",
    "label": "Labels",
    "labels": "Labels",
    "label_scores": "Score of a label",
    "tags": "Tags of the words",
    "choice": "Chosen place",
}
EXTREMES = {"score": "perplexity", "classify": "score", "qa": "score", "choose": "scores"}
"""The result by which a task's most and least telling rows are found; of classify's regression it is `value`."""
UNCOUNTED = {"generated_text", "generated_ids", "token_ids", "answer", "start", "end", "top"}
"""Free text, ids, places, and what other columns hold too."""


def measures_of(step: Step, columns: Mapping[str, str], schema: pa.Schema, most: int) -> list[Measure]:
    """The measures of a step's results; `columns` maps short names to columns, `most` rows are kept at each end."""
    found: list[Measure] = []
    for short, column in sorted(columns.items(), key=lambda each: each[0] != EXTREMES.get(step.task)):
        if short not in UNCOUNTED:
            found += _measures(short, column, schema.field(column).type)
    for short in dict.fromkeys([EXTREMES.get(step.task, ""), "value" if step.task == "classify" else ""]):
        column = columns.get(short, "")
        values = _by_row(schema.field(column).type, step.task) if column else None
        if values is not None:
            found.append(Extremes(column, values, most))
    if step.task == "qa" and "answer" in columns:
        found.append(Labels(columns["answer"], "Is there an answer?", _answered))
    return found


def _measures(short: str, column: str, kind: Any) -> list[Measure]:
    title = TITLES.get(short, short.replace("_", " ").capitalize())
    if short == "embedding":
        return [Numbers(column, "Norm of a vector", _norms), Directions(column, vectors)]
    if short == "entities":
        return [
            Labels(column, "Entities by group", partial(_item, name="entity_group")),
            Numbers(column, "Entities of a row", partial(_plain, of=pc.list_value_length), whole=True),
            Numbers(column, "Score of an entity", lambda array: _plain(_item(array, "score"))),
        ]
    if short == "choice":
        return [Labels(column, title, _written)]
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    item = kind.value_type if listed else kind
    if types.is_integer(item) or types.is_floating(item):
        values = partial(_plain, of=_flat) if listed else _plain
        return [Numbers(column, title, values, types.is_integer(item), short == "perplexity")]
    if types.is_string(item) or types.is_large_string(item):
        return [Labels(column, title, _flat if listed else _same)]
    if types.is_boolean(item) and not listed:
        return [Labels(column, title, _yes_or_no)]
    return []


def _plain(array: pa.Array, of: Callable[[pa.Array], pa.Array] | None = None) -> Floats:
    """Numbers without the nulls."""
    numbers = array if of is None else of(array)
    return np.asarray(pc.cast(numbers.drop_null(), pa.float64()), np.float64)


def _same(array: pa.Array) -> pa.Array:
    return array


def _written(array: pa.Array) -> pa.Array:
    return pc.cast(array, pa.string())


def _flat(array: pa.Array) -> pa.Array:
    return pc.list_flatten(array)


def _item(array: pa.Array, name: str) -> pa.Array:
    return pc.struct_field(pc.list_flatten(array), name)


def _yes_or_no(array: pa.Array) -> pa.Array:
    return pc.if_else(array, "yes", "no")


def _answered(array: pa.Array) -> pa.Array:
    """Of lists of answers the first is the best."""
    if not types.is_string(array.type):
        array = pc.list_element(array.filter(pc.greater(pc.list_value_length(array), 0)), 0)
    return pc.if_else(pc.equal(array, ""), "no answer", "answer found")


def vectors(array: pa.Array) -> Floats:
    """The vectors [rows, width] that are there."""
    width = array.type.list_size
    return np.asarray(pc.cast(array.drop_null().flatten(), pa.float64()), np.float64).reshape(-1, width)


def _norms(array: pa.Array) -> Floats:
    return np.asarray(np.linalg.norm(vectors(array), axis=1), np.float64)


def _by_row(kind: Any, task: str) -> Callable[[pa.Array], tuple[Floats, npt.NDArray[np.int64]]] | None:
    if types.is_floating(kind):
        return _one_a_row
    return _margins if task == "choose" and types.is_list(kind) else None


def _one_a_row(array: pa.Array) -> tuple[Floats, npt.NDArray[np.int64]]:
    return _plain(array), np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))


def _margins(array: pa.Array) -> tuple[Floats, npt.NDArray[np.int64]]:
    """How far the best of each row's scores is above the second best."""
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.flatnonzero(lengths > 1)
    scores = _plain(array.take(pa.array(rows)), _flat)
    owners = np.repeat(np.arange(len(rows)), lengths[rows])
    scores = scores[np.lexsort((scores, owners))]
    best = np.cumsum(lengths[rows]) - 1
    return scores[best] - scores[best - 1], rows
