"""classify: which label each row's text gets.

Reads `text`. What it writes follows from the checkpoint: `label` and `score` where one label of several is right,
`labels` and `label_scores` where any number may be (a multi-label model), `value` for a regression. With
`zero_shot` the labels are the job's own and the language-model head compares them: see zero_shot.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.documents import INPUTS, DocumentReader, Documents, Truncation, told
from pipeline.tasks.likelihoods import ForkScores
from pipeline.tasks.prompts import language_model
from pipeline.tasks.rows import RowResults
from pipeline.tasks.verdict import Function, Kind, Logits, Verdict, function_of, kind_of
from pipeline.tasks.zero_shot import ZeroShot, ZeroShotOptions, ZeroShotRows

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2ForSequenceClassification, GPT2Tokenizer
    from pipeline.batching import Index, PackRunner


class ClassifyOptions(Options):
    """Options of the classify task."""

    top_k: Annotated[int, Field(gt=0)] = 1
    """Above 1: also write `top`, that many labels with their scores, best first."""
    scores: bool = False
    """Also write `scores`, a struct with the score of every label."""
    function: Literal["auto"] | Function = "auto"
    """From logits to scores. auto: by the checkpoint's problem_type and number of labels, as transformers' pipeline."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Score from which a multi-label model's label is given."""
    truncation: Truncation = "end"
    """Of texts longer than the context: leave out the end, the start, or nothing: windows, averaged."""
    zero_shot: ZeroShotOptions | None = None
    """Compare these labels by the language-model head, instead of a classifier's own."""


@dataclass(frozen=True, slots=True)
class Classified:
    """Logits of each sequence [N, K], and what could not be computed."""

    logits: Logits
    failed: Mapping[int, str]


class ClassifyTask:
    """The classify task over one tokenizer and one model's labels."""

    inputs = INPUTS

    def __init__(
        self, options: ClassifyOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        self.zero_shot: ZeroShot | None = None
        if options.zero_shot is None:
            labels = tuple(config.id2label[index] for index in range(config.num_labels))
            kind, function = kind_of(config), function_of(options.function, config)
        else:
            if options.truncation == "windows":
                raise JobError("classify.truncation is windows, which zero_shot can't do: give start or end")
            labels, kind, function = tuple(options.zero_shot.labels), "single", "softmax"
            self.zero_shot = ZeroShot(options.zero_shot, options.truncation == "start", tokenizer, config)
        _refuse_idle(options, kind)
        if options.top_k > len(labels):
            raise JobError(f"classify.top_k {options.top_k}: there are only {len(labels)} labels")
        if len(set(labels)) < len(labels):
            raise JobError(
                f"the checkpoint's id2label names a label twice ({', '.join(labels)}): correct its config.json"
            )
        self.verdict = Verdict(labels, kind, function, options.top_k, options.scores, options.threshold)
        self._reader = DocumentReader(tokenizer, config.n_positions, options.truncation)

    @staticmethod
    def architecture(options: ClassifyOptions, config: GPT2Config) -> str:
        """A sequence classifier, or the language-model head."""
        return "GPT2ForSequenceClassification" if options.zero_shot is None else language_model(config)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""
        return self.verdict.fields

    def prepare(self, rows: pa.Table) -> Documents | ZeroShotRows:
        """Tokenize the texts, with every label where there is no classifier."""
        return self._reader.read(rows) if self.zero_shot is None else self.zero_shot.prepare(rows, self.inputs)

    def num_tokens(self, prepared: Documents | ZeroShotRows) -> int:
        """Tokens of all texts."""
        if isinstance(prepared, Documents):
            return len(prepared.sequences.ids)
        return int(prepared.forks.lengths.sum())

    def compute(self, model: Any, prepared: Documents | ZeroShotRows, runner: PackRunner) -> Classified | ForkScores:
        """Logits of every text."""
        if isinstance(prepared, Documents):
            return self._classified(model, prepared, runner)
        assert self.zero_shot is not None
        return self.zero_shot.compute(model, prepared, runner)

    def _classified(self, model: GPT2ForSequenceClassification, prepared: Documents, runner: PackRunner) -> Classified:
        logits = np.zeros((len(prepared.sequences), len(self.verdict.labels)))

        def call(index: Index) -> None:
            packed = prepared.sequences.packed(index, model.device)
            logits[index] = model.forward_packed(packed).double().cpu().numpy()

        failed = runner.run(prepared.sequences.lengths, call)
        return Classified(logits, prepared.sequences.rows_of(failed))

    def finish(self, prepared: Documents | ZeroShotRows, computed: Classified | ForkScores) -> RowResults:
        """Scores, labels, errors and figures of the group."""
        count = prepared.texts.count
        errors = {**prepared.texts.errors, **computed.failed}
        if isinstance(prepared, ZeroShotRows):
            errors.update(prepared.errors)
        scores = np.zeros((count, len(self.verdict.labels)))
        missing = np.ones(count, np.bool_)
        if isinstance(prepared, Documents):
            assert isinstance(computed, Classified)
            sequences, figures = prepared.sequences, prepared.figures()
            shares = sequences.lengths / np.bincount(sequences.rows, sequences.lengths, count)[sequences.rows]
            np.add.at(scores, sequences.rows, self.verdict.applied(computed.logits) * shares[:, None])
            missing[sequences.rows] = False
        else:
            assert isinstance(computed, ForkScores)
            assert self.zero_shot is not None
            scores[prepared.forks.rows] = self.verdict.applied(self.zero_shot.logits(prepared, computed))
            missing[prepared.forks.rows] = False
            figures = {"tokens": float(self.num_tokens(prepared)), "truncated": float(prepared.cut)}
        for row in np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist():
            errors.setdefault(row, "the scores are not finite: the model overflows in this dtype")
        missing[list(errors)] = True
        scores[missing] = 0.0
        columns = self.verdict.columns(scores, missing)
        return RowResults(columns, errors, {**figures, **self.verdict.figures(scores[~missing])})

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Tokens, what was cut, and how often each label was given."""
        return {**told(figures), **self.verdict.summary(figures)}


def _refuse_idle(options: ClassifyOptions, kind: Kind) -> None:
    """Options that would decide nothing with this checkpoint are refused rather than ignored."""
    plain = ClassifyOptions()
    idle = {
        "top_k": kind == "regression",
        "scores": kind == "regression",
        "threshold": kind != "multi",
    }
    for name, decides_nothing in idle.items():
        if decides_nothing and getattr(options, name) != getattr(plain, name):
            what = {"single": "gives each text one label", "regression": "gives numbers", "multi": ""}[kind]
            raise JobError(
                f"classify.{name} is {getattr(options, name)}, which decides nothing here, as the model {what}: "
                "leave it out"
            )
    if options.zero_shot is not None and options.function not in ("auto", "softmax"):
        raise JobError(f"classify.function is {options.function}, and zero_shot compares by softmax: leave it out")
