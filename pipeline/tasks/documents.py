"""Whole texts as token sequences of the model's context, and what becomes of those that are longer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from pipeline.tasks.prompts import added_tokens
from pipeline.tasks.rows import Holds, RowTexts, read_texts
from pipeline.tasks.sequences import Ids, Sequences, lay_out

if TYPE_CHECKING:
    from gpt2model import GPT2Tokenizer

Truncation = Literal["end", "start", "windows"]
INPUTS: Mapping[str, Holds] = {"text": Holds.TEXT}


@dataclass(frozen=True, slots=True)
class Documents:
    """A group of rows; each has one sequence, several windows, or none where its text has no tokens."""

    texts: RowTexts
    sequences: Sequences
    truncated: int
    """Rows of which tokens were left out."""
    windowed: int
    """Rows that were cut into several windows."""

    def figures(self) -> dict[str, float]:
        """What is told of every group: tokens given to the model, rows cut."""
        return {
            "tokens": float(len(self.sequences.ids)),
            "truncated": float(self.truncated),
            "windowed": float(self.windowed),
        }


class DocumentReader:
    """Reads texts as transformers' pipelines do: with the tokenizer's own added tokens, to at most `context` tokens."""

    def __init__(self, tokenizer: GPT2Tokenizer, context: int, truncation: Truncation) -> None:
        """`truncation` leaves out the end or the start of longer texts, or cuts them into windows of like length."""
        self._tokenizer = tokenizer
        self._truncation = truncation
        self._before, self._after = added_tokens(tokenizer)
        self._room = context - len(self._before) - len(self._after)

    def read(self, rows: pa.Table) -> Documents:
        """Tokenize the column `text`."""
        texts = read_texts(rows, INPUTS)
        ragged = self._tokenizer.encode_ragged([text for (text,) in texts.values])
        ids, owners, truncated, windowed = [], [], 0, 0
        for row, whole in zip(texts.rows, ragged, strict=True):
            pieces = list(self._pieces(whole))
            ids += pieces
            owners += [row] * len(pieces)
            truncated += len(whole) > self._room and self._truncation != "windows"
            windowed += len(pieces) > 1
        return Documents(texts, lay_out(ids, owners), truncated, windowed)

    def _pieces(self, whole: Ids) -> Iterator[Ids]:
        if self._truncation == "windows":
            cuts = np.array_split(whole, max(1, -(-len(whole) // self._room)))
        else:
            cuts = [whole[: self._room] if self._truncation == "end" else whole[max(0, len(whole) - self._room) :]]
        for content in cuts:
            piece = np.concatenate([self._before, content, self._after])
            if len(piece):
                yield piece


def told(figures: Mapping[str, float]) -> dict[str, float | None]:
    """The summary's lines on what was cut; none where nothing was."""
    lines = {"truncated texts": figures.get("truncated", 0), "texts in several windows": figures.get("windowed", 0)}
    return {"tokens": figures.get("tokens", 0), **{name: count for name, count in lines.items() if count}}
