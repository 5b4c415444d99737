"""From a classifier's logits to columns: which labels, how sure, or which number.

Shapes: N rows, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.tasks.rows import list_column

if TYPE_CHECKING:
    from gpt2model import GPT2Config

Logits = npt.NDArray[np.float64]
Missing = npt.NDArray[np.bool_]
Kind = Literal["single", "multi", "regression"]
Function = Literal["softmax", "sigmoid", "none"]

SCORED = pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())])
COUNTED = "label "


def kind_of(config: GPT2Config) -> Kind:
    """One label of several, any number of labels, or numbers, by problem_type and the number of labels."""
    if config.problem_type == "regression" or config.num_labels == 1:
        return "regression"
    return "multi" if config.problem_type == "multi_label_classification" else "single"


def function_of(asked: Literal["auto"] | Function, config: GPT2Config) -> Function:
    """What `auto` stands for, as in transformers' TextClassificationPipeline."""
    if asked != "auto":
        return asked
    if config.problem_type == "regression":
        return "none"
    multi = config.problem_type == "multi_label_classification"
    return "sigmoid" if multi or config.num_labels == 1 else "softmax"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is made of the logits of K labels."""

    labels: tuple[str, ...]
    kind: Kind
    function: Function
    top_k: int
    scores: bool
    threshold: float

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The columns."""
        number = pa.float32()
        if self.kind == "regression":
            whole = len(self.labels) == 1
            return (pa.field("value", number if whole else pa.list_(number, len(self.labels))),)
        if self.kind == "multi":
            fields = [pa.field("labels", pa.list_(pa.string())), pa.field("label_scores", pa.list_(number))]
        else:
            fields = [pa.field("label", pa.string()), pa.field("score", number)]
        if self.top_k > 1:
            fields.append(pa.field("top", pa.list_(SCORED)))
        if self.scores:
            fields.append(pa.field("scores", pa.struct([pa.field(label, number) for label in self.labels])))
        return tuple(fields)

    def applied(self, logits: Logits) -> Logits:
        """Scores [N, K] of logits [N, K]."""
        if self.function == "none":
            return logits
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told as the row's error
            if self.function == "sigmoid":
                return 1 / (1 + np.exp(-logits))
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores: Logits = exponentials / exponentials.sum(axis=1, keepdims=True)
        return scores

    def columns(self, scores: Logits, missing: Missing) -> list[pa.Array]:
        """One array a field, null for the missing rows, whose scores [N, K] don't count."""
        if self.kind == "regression":
            return [self._values(scores, missing)]
        order = np.argsort(-scores, axis=1, kind="stable")
        columns = self._multi(scores, order, missing) if self.kind == "multi" else self._single(scores, order, missing)
        if self.top_k > 1:
            columns.append(self._top(scores, order, missing))
        if self.scores:
            parts = [pa.array(column.astype(np.float32)) for column in scores.T]
            columns.append(pa.StructArray.from_arrays(parts, fields=list(self.fields[-1].type), mask=pa.array(missing)))
        return columns

    def _values(self, scores: Logits, missing: Missing) -> pa.Array:
        numbers = pa.array(scores.astype(np.float32).ravel(), mask=missing if len(self.labels) == 1 else None)
        if len(self.labels) == 1:
            return numbers
        return pa.FixedSizeListArray.from_arrays(numbers, len(self.labels), mask=pa.array(missing))

    def _single(self, scores: Logits, order: npt.NDArray[np.intp], missing: Missing) -> list[pa.Array]:
        names = self._names(order[:, 0], missing)
        return [names, pa.array(scores.max(axis=1).astype(np.float32), mask=missing)]

    def _multi(self, scores: Logits, order: npt.NDArray[np.intp], missing: Missing) -> list[pa.Array]:
        ordered = np.take_along_axis(scores, order, axis=1)
        given = (ordered >= self.threshold) & ~missing[:, None]
        counts = given.sum(axis=1)
        columns = zip((self._names(order[given]), pa.array(ordered[given])), self.fields[:2], strict=True)
        return [list_column(flat, counts, missing, field.type) for flat, field in columns]

    def _top(self, scores: Logits, order: npt.NDArray[np.intp], missing: Missing) -> pa.Array:
        best = order[~missing, : self.top_k]
        values = np.take_along_axis(scores[~missing], best, axis=1).astype(np.float32)
        arrays = [self._names(best.ravel()), pa.array(values.ravel())]
        items = pa.StructArray.from_arrays(arrays, fields=list(SCORED))
        return list_column(items, np.where(missing, 0, self.top_k), missing, pa.list_(SCORED))

    def _names(self, index: npt.NDArray[np.intp], missing: Missing | None = None) -> pa.Array:
        return pa.array(self.labels, pa.string()).take(pa.array(index, mask=missing))

    def figures(self, scores: Logits) -> dict[str, float]:
        """How often each label is given in scores [N, K]; the sum of the values of a regression."""
        if self.kind == "regression":
            return {"value": float(scores[:, 0].sum()), "values": float(len(scores))}
        given = scores >= self.threshold if self.kind == "multi" else _first(scores)
        return {f"{COUNTED}{label}": float(count) for label, count in zip(self.labels, given.sum(axis=0), strict=True)}

    def summary(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """What a finished run says: rows a label, most first, or the mean value."""
        if self.kind == "regression":
            count = figures.get("values", 0)
            return {"mean value": figures["value"] / count if count else None}
        counted = {label: figures.get(f"{COUNTED}{label}", 0) for label in self.labels}
        most = sorted(counted.items(), key=lambda each: -each[1])
        return {f"rows labelled {label}": count for label, count in most if count}


def _first(scores: Logits) -> npt.NDArray[np.bool_]:
    """[N, K]: True at each row's first greatest score."""
    greatest = scores.argmax(axis=1)
    marked: npt.NDArray[np.bool_] = greatest[:, None] == np.arange(scores.shape[1])
    return marked
