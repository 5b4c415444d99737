"""qa: the span of each row's context that answers its question.

Reads `question` and `context`. Writes `answer`, `start` and `end`, the characters of the context that it is
(context[start:end] == answer), and `score`, its probability; with `top_k` above 1 each column is a list, best first.
How a span is scored is in `pipeline.tasks.spans`.

Shapes: C tokens of all contexts, T tokens of all windows, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.rows import Holds, RowResults, RowTexts, list_column, read_texts
from pipeline.tasks.sequences import Ids, Sequences, lay_out, places
from pipeline.tasks.spans import Spans, best_spans, merged, trimmed

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from gpt2model.classifiers import GPT2ForQuestionAnswering
    from pipeline.batching import Index, PackRunner

COLUMNS = {"answer": pa.string(), "start": pa.int32(), "end": pa.int32(), "score": pa.float32()}


class QaOptions(Options):
    """Options of the qa task."""

    top_k: Annotated[int, Field(gt=0)] = 1
    """Answers a row; above 1 the result columns are lists, best first."""
    max_answer_tokens: Annotated[int, Field(gt=0)] = 30
    """Longest answer."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Tokens of the context that neighbouring windows share."""
    no_answer: bool = False
    """Allow no answer: then `answer` is empty where that scores best."""


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """Ids that a tokenizer puts around the two texts of a pair."""

    before: Ids
    between: Ids
    after: Ids

    @property
    def added(self) -> int:
        """Tokens of a pair that come from neither text."""
        return len(self.before) + len(self.between) + len(self.after)

    def head(self, question: Ids) -> Ids:
        """All that stands before the context."""
        return np.concatenate([self.before, question, self.between])


@dataclass(frozen=True, slots=True)
class QaRows:
    """A group of rows, ready for the model."""

    texts: RowTexts
    windows: Sequences
    heads: Sequence[int]
    """Tokens of each window before those of the context, [W]."""
    pieces: Sequence[slice]
    """The tokens of the contexts that each window reads, among the C, [W]."""
    bounds: npt.NDArray[np.int64]
    """First character of each token in its context, and the one behind its last, white space left out, [C, 2]."""
    visible: npt.NDArray[np.bool_]
    """Tokens that are more than white space, [C]."""
    errors: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class QaLogits:
    """What the model said of a group: start and end logits [T, 2]."""

    logits: npt.NDArray[np.float32]
    failed: Mapping[int, str]


class QaTask:
    """The qa task over one tokenizer and one model's context length."""

    def __init__(
        self, options: QaOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.context = config.n_positions
        self.template = pair_template(tokenizer)
        self.inputs = dict.fromkeys(("question", "context"), Holds.TEXT)
        most = config.n_positions - self.template.added - 2
        if options.overlap > most:
            raise JobError(
                f"qa.overlap {options.overlap} leaves no room for a question and one more token in the model's context "
                f"of {config.n_positions} tokens: give {most} or less"
            )

    @staticmethod
    def architecture(options: QaOptions, config: GPT2Config) -> str:
        """A checkpoint with a head for starts and ends."""
        return "GPT2ForQuestionAnswering"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""
        many = self.options.top_k > 1
        return tuple(pa.field(name, pa.list_(kind) if many else kind) for name, kind in COLUMNS.items())

    def prepare(self, rows: pa.Table) -> QaRows:
        """Tokenize the input columns and cut long contexts into windows, each behind its question."""
        texts = read_texts(rows, self.inputs)
        questions = self.tokenizer.encode_ragged([question for question, _ in texts.values])
        contexts = self.tokenizer.encode_ragged([context for _, context in texts.values], return_chars=True)
        bounds, visible = trimmed(contexts, [context for _, context in texts.values])
        errors = dict(texts.errors)
        ids, window_rows, heads, pieces = list[Ids](), list[int](), list[int](), list[slice]()
        for place, (row, question) in enumerate(zip(texts.rows, questions, strict=True)):
            start, stop = contexts.offsets[place : place + 2].tolist()
            if len(question) == 0 or not visible[start:stop].any():
                continue
            head = self.template.head(question)
            room = self.context - len(question) - self.template.added
            if stop - start > room <= self.options.overlap:
                errors[row] = self._too_long(len(question), room)
                continue
            for piece in cut(start, stop, room, self.options.overlap):
                ids.append(np.concatenate([head, contexts.ids[piece], self.template.after]))
                window_rows.append(row)
                heads.append(len(head))
                pieces.append(piece)
        return QaRows(texts, lay_out(ids, window_rows), heads, pieces, bounds, visible, errors)

    def _too_long(self, question: int, room: int) -> str:
        return (
            f"the question has {question} tokens and leaves {max(room, 0)} of the model's {self.context} to a context "
            f"that needs windows, which share {self.options.overlap}: shorten the question or give a smaller qa.overlap"
        )

    def num_tokens(self, prepared: QaRows) -> int:
        """Tokens in all windows."""
        return len(prepared.windows.ids)

    def compute(self, model: GPT2ForQuestionAnswering, prepared: QaRows, runner: PackRunner) -> QaLogits:
        """Start and end logits of every token."""
        logits = np.zeros((len(prepared.windows.ids), 2), np.float32)

        def call(index: Index) -> None:
            found = model.forward_packed(prepared.windows.packed(index, model.device))
            logits[places(prepared.windows.spans(index))] = found.float().cpu().numpy()

        failed = runner.run(prepared.windows.lengths, call)
        return QaLogits(logits, prepared.windows.rows_of(failed))

    def finish(self, prepared: QaRows, computed: QaLogits) -> RowResults:
        """Find the best spans: the result columns, the errors and the figures of the group."""
        errors = {**prepared.errors, **computed.failed, **_not_finite(prepared.windows, computed.logits)}
        found = self._answers(prepared, computed.logits, errors)
        questions = prepared.texts.count - len(errors)
        figures = {
            "questions": float(questions),
            "unanswered": float(questions - sum(spans.bounds[0, 1] > 0 for spans in found.values())),
            "windows": float(len(prepared.windows)),
        }
        return RowResults(self._columns(prepared.texts, found), errors, figures)

    def _answers(
        self, prepared: QaRows, logits: npt.NDArray[np.float32], errors: Mapping[int, str]
    ) -> dict[int, Spans]:
        """Row -> its best spans, best first; rows without windows are left out, all others have one."""
        by_row: dict[int, list[Spans]] = {}
        for window, row in enumerate(prepared.windows.rows.tolist()):
            if row not in errors:
                by_row.setdefault(row, []).append(self._read(prepared, logits, window))
        return {row: merged(spans, self.options.top_k) for row, spans in by_row.items()}

    def _read(self, prepared: QaRows, logits: npt.NDArray[np.float32], window: int) -> Spans:
        """The best spans of one window."""
        begin, piece = int(prepared.windows.offsets[window]), prepared.pieces[window]
        first = begin + prepared.heads[window]
        return best_spans(
            logits[first : first + piece.stop - piece.start],
            prepared.bounds[piece],
            prepared.visible[piece],
            nothing=logits[begin] if self.options.no_answer else None,
            max_tokens=self.options.max_answer_tokens,
            top_k=self.options.top_k,
        )

    def _columns(self, texts: RowTexts, found: Mapping[int, Spans]) -> list[pa.Array]:
        """The result columns; null for rows that have no windows, or an error."""
        counts = np.zeros(texts.count, np.int64)
        answers = list[str]()
        for row, (_, context) in zip(texts.rows, texts.values, strict=True):
            if row in found:
                counts[row] = len(found[row].bounds)
                answers += [context[start:end] for start, end in found[row].bounds.tolist()]
        bounds = np.concatenate([np.zeros((0, 2), np.int64), *(spans.bounds for spans in found.values())])
        scores = np.exp(np.concatenate([np.zeros(0), *(spans.scores for spans in found.values())]))
        flat = zip(COLUMNS.values(), (answers, bounds[:, 0], bounds[:, 1], scores), strict=True)
        missing = counts == 0
        if self.options.top_k == 1:
            place = pa.array(np.cumsum(counts) - 1, mask=missing)
            return [pa.array(values).cast(kind).take(place) for kind, values in flat]
        return [list_column(pa.array(values), counts, missing, pa.list_(kind)) for kind, values in flat]

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Questions, those among them without an answer, and the windows that were read."""
        return {
            "questions": figures.get("questions", 0),
            "questions without an answer": figures.get("unanswered", 0),
            "windows": figures.get("windows", 0),
        }


def pair_template(tokenizer: GPT2Tokenizer) -> PairTemplate:
    """What the tokenizer adds to a question and its context; JobError where it does more than add."""
    question, context = tokenizer.encode_ragged(["a", "b"])
    row = tokenizer("a", "b")
    ids, sides = np.array(row.input_ids, np.int64), row.sequence_ids()
    first = sides.index(0) if 0 in sides else 0
    second = sides.index(1) if 1 in sides else 0
    template = PairTemplate(ids[:first], ids[first + len(question) : second], ids[second + len(context) :])
    if not np.array_equal(np.concatenate([template.head(question), context, template.after]), ids):
        raise JobError(
            "the tokenizer's template for pairs (post_processor in tokenizer.json) does not put a first text before a "
            "second one, each once, and qa reads a question and then its context: give it a template of $A and $B"
        )
    return template


def cut(start: int, stop: int, room: int, overlap: int) -> Iterator[slice]:
    """Windows of `room` tokens over those from `start` to `stop`, neighbours sharing `overlap`; the last is shorter.

    As tokenizers cut with a stride. `overlap` must be less than `room` where one window does not hold all.
    """
    if stop - start <= room:
        yield slice(start, stop)
        return
    for begin in range(start, stop - overlap, room - overlap):
        yield slice(begin, min(begin + room, stop))


def _not_finite(windows: Sequences, logits: npt.NDArray[np.float32]) -> dict[int, str]:
    """Rows whose numbers the dtype could not hold."""
    rows = np.repeat(windows.rows, windows.lengths)
    wrong = np.unique(rows[~np.isfinite(logits).all(axis=1)])
    return {int(row): "the logits are not finite: the model overflows in this dtype" for row in wrong}
