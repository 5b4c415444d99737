"""ner: the names in each row's text, or in its words, with what they name.

Reads `text`, or `tokens` (a list of words). Writes entities: name, score, word, and the characters [start, end) of the
text, which are the word; and for `tokens` also tags, one a word. The text of words is the words with a space between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.entities import Entity, Ints, Strategy, Tokens, Units, find_entities, make_units
from pipeline.tasks.ner_labels import OUTSIDE, read_labels
from pipeline.tasks.ner_words import given_words, spaced_words
from pipeline.tasks.prompts import added_tokens
from pipeline.tasks.rows import Holds, RowResults, RowTexts, list_column, read_texts
from pipeline.tasks.sequences import Ids, Sequences, concatenate, lay_out, places

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2ForTokenClassification, GPT2Tokenizer
    from gpt2model.encoding import Ragged
    from pipeline.batching import Index, PackRunner

ENTITIES = pa.list_(
    pa.struct(
        [
            pa.field("entity_group", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("word", pa.string()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
        ]
    )
)
TAGS = pa.list_(pa.string())


class NerOptions(Options):
    """Options of the ner task."""

    strategy: Strategy = "simple"
    """How tokens become entities, as in transformers' TokenClassificationPipeline."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """Tokens that neighbouring windows of a long text share."""


@dataclass(frozen=True, slots=True)
class NerRows:
    """A group of rows, ready for the model: one sequence a window."""

    given: RowTexts
    texts: Sequence[str]
    words: Ints
    """[texts]: words that each text was given as."""
    windows: Sequences
    own: Ints
    """Of the windows' tokens those that are labelled there: each token of the texts once, without special tokens."""
    tokens: Tokens
    """These tokens."""
    cut: int
    """Texts of several windows."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What the model said of a group."""

    probabilities: npt.NDArray[np.float32]
    """[all tokens of the windows, labels]"""
    failed: Mapping[int, str]


class NerTask:
    """The ner task over one tokenizer, one model's labels and its context length."""

    def __init__(
        self, options: NerOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.before, self.after = added_tokens(tokenizer)
        self.room = config.n_positions - len(self.before) - len(self.after)
        """Tokens of a text that a window holds, between those that the tokenizer adds."""
        self.labels = read_labels(config.id2label)
        if {"text", "tokens"} <= set(columns):
            raise JobError("input.columns names both text and tokens: ner takes one or the other")
        self.inputs = {"tokens": Holds.TEXTS} if "tokens" in columns else {"text": Holds.TEXT}
        if options.overlap >= self.room:
            added = f", less the {config.n_positions - self.room} that the tokenizer adds"
            raise JobError(
                f"ner.overlap {options.overlap} is not below the model's context of {config.n_positions} tokens"
                f"{added if self.room < config.n_positions else ''}, and windows would not advance: "
                f"give {self.room - 1} or less"
            )

    @staticmethod
    def architecture(options: NerOptions, config: GPT2Config) -> str:
        """A checkpoint that labels tokens."""
        return "GPT2ForTokenClassification"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""
        fields = [pa.field("entities", ENTITIES)]
        if "tokens" in self.inputs:
            fields.append(pa.field("tags", TAGS))
        return tuple(fields)

    def prepare(self, rows: pa.Table) -> NerRows:
        """Tokenize the input column and cut it into windows."""
        given = read_texts(rows, self.inputs)
        values = [value for (value,) in given.values]
        lists = values if "tokens" in self.inputs else []
        texts = [" ".join(words) for words in lists] if "tokens" in self.inputs else values
        ragged = self.tokenizer.encode_ragged(texts, return_chars=True)
        windows, own = self._windows(given.rows, ragged)
        tokens, labelled = self._tokens(texts, lists, ragged)
        return NerRows(
            given=given,
            texts=texts,
            words=np.array([len(words) for words in lists], np.int64),
            windows=windows,
            own=own[labelled],
            tokens=tokens,
            cut=int((ragged.lengths > self.room).sum()),
        )

    def _windows(self, rows: Sequence[int], ragged: Ragged) -> tuple[Sequences, Ints]:
        """The windows, and where in them each token of the texts is labelled: in the first that holds it.

        Each window is framed by what the tokenizer adds to a text, as the windows of transformers' `stride` are.
        """
        ids, window_rows, own, laid = list[Ids](), list[int](), list[Ids](), 0
        for row, text in zip(rows, ragged, strict=True):
            for begin, end, first in _cut(len(text), self.room, self.options.overlap):
                ids.append(np.concatenate([self.before, text[begin:end], self.after]))
                window_rows.append(row)
                start = laid + len(self.before) - begin
                own.append(np.arange(start + first, start + end))
                laid += len(ids[-1])
        return lay_out(ids, window_rows), concatenate(own)

    def _tokens(self, texts: Sequence[str], lists: Sequence[Sequence[str]], ragged: Ragged) -> tuple[Tokens, Ints]:
        """The tokens that are labelled, and which they are: not those of no characters, nor those between words."""
        assert ragged.chars is not None
        written = np.flatnonzero(ragged.chars[:, 1] > ragged.chars[:, 0])
        token_texts = np.repeat(np.arange(len(texts)), ragged.lengths)[written]
        chars = ragged.chars[written]
        if "tokens" in self.inputs:
            words = given_words(lists, token_texts, chars)
        else:
            words = spaced_words(texts, token_texts, chars, ragged.ids[written] == self.tokenizer.unk_token_id)
        labelled = words >= 0
        return Tokens(token_texts, chars, words)[labelled], written[labelled]

    def num_tokens(self, prepared: NerRows) -> int:
        """Tokens in all windows."""
        return len(prepared.windows.ids)

    def compute(self, model: GPT2ForTokenClassification, prepared: NerRows, runner: PackRunner) -> Labelled:
        """Each token's probabilities."""
        probabilities = np.zeros((len(prepared.windows.ids), len(self.labels.names)), np.float32)

        def call(index: Index) -> None:
            logits = model.forward_packed(prepared.windows.packed(index, model.device))
            found = logits.float().softmax(dim=-1).cpu().numpy()
            probabilities[places(prepared.windows.spans(index))] = found

        failed = runner.run(prepared.windows.lengths, call)
        return Labelled(probabilities, prepared.windows.rows_of(failed))

    def finish(self, prepared: NerRows, computed: Labelled) -> RowResults:
        """Tokens to entities: the result columns, the errors and the figures of the group."""
        given, strategy = prepared.given, self.options.strategy
        errors = {**given.errors, **computed.failed, **_not_finite(prepared.windows, computed.probabilities)}
        missing = np.zeros(given.count, np.bool_)
        missing[list(errors)] = True
        rows = np.array(given.rows, np.int64)
        chosen = ~missing[rows][prepared.tokens.texts]
        tokens = prepared.tokens[chosen]
        units = make_units(computed.probabilities[prepared.own[chosen]], tokens.words, strategy)
        entities = find_entities(prepared.texts, tokens, units, self.labels, strategy)
        counts = np.bincount(rows[[entity.text for entity in entities]], minlength=given.count)
        columns = [list_column(_entity_values(entities), counts, missing, ENTITIES)]
        if "tokens" in self.inputs:
            columns.append(self._tags(prepared, tokens, units, missing))
        return RowResults(columns, errors, _figures(tokens, entities, prepared.cut))

    def _tags(self, prepared: NerRows, tokens: Tokens, units: Units, missing: npt.NDArray[np.bool_]) -> pa.Array:
        """The label of each word's first unit; O for a word that has none, being empty."""
        tags = np.full(prepared.words.sum(), OUTSIDE, object)
        words, firsts = np.unique(tokens.words[units.firsts], return_index=True)
        tags[words] = np.array(self.labels.names, object)[units.labels[firsts]]
        rows = np.array(prepared.given.rows, np.int64)
        counts = np.zeros(prepared.given.count, np.int64)
        counts[rows] = np.where(missing[rows], 0, prepared.words)
        kept = tags[~np.repeat(missing[rows], prepared.words)]
        return list_column(pa.array(kept, pa.string()), counts, missing, TAGS)

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Tokens, and entities: all and by group."""
        groups = sorted(name for name in figures if name.startswith("entities "))
        return {
            "labelled tokens": figures.get("tokens", 0),
            "entities": figures.get("entities", 0),
            **{name: figures[name] for name in groups},
            **({"texts read in several windows": cut} if (cut := figures.get("cut", 0)) else {}),
        }


def _cut(total: int, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """Windows (begin, end, first) over `total` tokens: of begin..end-1 those from `first` on are in no earlier one."""
    for begin in range(0, max(total - overlap, min(total, 1)), window - overlap):
        yield begin, min(begin + window, total), begin + overlap if begin else 0


def _not_finite(windows: Sequences, probabilities: npt.NDArray[np.float32]) -> dict[int, str]:
    """Rows whose numbers the dtype could not hold."""
    wrong = np.unique(np.repeat(windows.rows, windows.lengths)[~np.isfinite(probabilities).all(axis=1)])
    return {int(row): "the probabilities are not finite: the model overflows in this dtype" for row in wrong}


def _entity_values(entities: Sequence[Entity]) -> pa.StructArray:
    """The entities of all rows, one after the other."""
    kind = ENTITIES.value_type
    columns = (
        [entity.name for entity in entities],
        [entity.score for entity in entities],
        [entity.word for entity in entities],
        [entity.start for entity in entities],
        [entity.end for entity in entities],
    )
    return pa.StructArray.from_arrays(
        [pa.array(values, field.type) for values, field in zip(columns, kind, strict=True)], fields=list(kind)
    )


def _figures(tokens: Tokens, entities: Sequence[Entity], cut: int) -> dict[str, float]:
    groups = Counter(f"entities {entity.name}" for entity in entities)
    return {"tokens": float(len(tokens.texts)), "entities": float(len(entities)), "cut": float(cut), **groups}
