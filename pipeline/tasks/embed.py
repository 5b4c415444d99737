"""embed: each row's text as a vector of the model's hidden states.

Reads `text`. Writes `embedding`, a fixed_size_list of the model's width: the mean over the text's tokens, or the last
token's state. A text without tokens has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.documents import INPUTS, DocumentReader, Documents, Truncation, told
from pipeline.tasks.rows import RowResults

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2model import GPT2Config, GPT2Model, GPT2Tokenizer, Packed
    from pipeline.batching import Index, PackRunner


class EmbedOptions(Options):
    """Options of the embed task."""

    pooling: Literal["mean", "last"] = "mean"
    """The mean over all tokens, or the state of the last one."""
    layer: int = -1
    """Which hidden states, as transformers numbers them: 0 enters the first block, -1 is the last."""
    normalize: bool = False
    """Divide by the Euclidean length."""
    dtype: Literal["float32", "float16"] = "float32"
    """How the numbers are written."""
    truncation: Truncation = "windows"
    """Of texts longer than the context: leave out the end, the start, or nothing: windows of like length."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """States [N, D], the mean of each sequence or its last token's, and what could not be computed."""

    states: npt.NDArray[np.float32]
    failed: Mapping[int, str]


class EmbedTask:
    """The embed task over one tokenizer and one model."""

    inputs = INPUTS

    def __init__(
        self, options: EmbedOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        layers = config.n_layer + 1
        if not -layers <= options.layer < layers:
            raise JobError(
                f"embed.layer {options.layer}: the model has {config.n_layer} blocks and so the hidden states "
                f"{-layers} to {layers - 1}"
            )
        self.options = options
        self.width = config.n_embd
        self._reader = DocumentReader(tokenizer, config.n_positions, options.truncation)

    @staticmethod
    def architecture(options: EmbedOptions, config: GPT2Config) -> str:
        """Any checkpoint: its head is left aside."""
        return "GPT2Model"

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""
        kind = pa.float16() if self.options.dtype == "float16" else pa.float32()
        return (pa.field("embedding", pa.list_(kind, self.width)),)

    def prepare(self, rows: pa.Table) -> Documents:
        """Tokenize the texts."""
        return self._reader.read(rows)

    def num_tokens(self, prepared: Documents) -> int:
        """Tokens of all texts."""
        return len(prepared.sequences.ids)

    def compute(self, model: GPT2Model, prepared: Documents, runner: PackRunner) -> Embedded:
        """Hidden states, pooled on the device."""
        states = np.zeros((len(prepared.sequences), self.width), np.float32)

        def call(index: Index) -> None:
            packed = prepared.sequences.packed(index, model.device)
            states[index] = self._pooled(model, packed).float().cpu().numpy()

        failed = runner.run(prepared.sequences.lengths, call)
        return Embedded(states, prepared.sequences.rows_of(failed))

    def _pooled(self, model: GPT2Model, packed: Packed) -> Tensor:
        """The last state of each sequence, or the mean of all: [N, D]."""
        layer = self.options.layer
        if self.options.pooling == "last":
            return model.forward_packed(packed, layer=layer, only=packed.ends()[1])
        return packed.means(model.forward_packed(packed, layer=layer))

    def finish(self, prepared: Documents, computed: Embedded) -> RowResults:
        """Windows to rows."""
        sequences, count = prepared.sequences, prepared.texts.count
        vectors = np.zeros((count, self.width), np.float32)
        if self.options.pooling == "last":
            vectors[sequences.rows] = computed.states  # the last window of a row is the last to be written
        else:
            totals = np.bincount(sequences.rows, sequences.lengths, count)
            shares = (sequences.lengths / totals[sequences.rows]).astype(np.float32)
            np.add.at(vectors, sequences.rows, computed.states * shares[:, None])
        if self.options.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        with np.errstate(over="ignore"):
            written = vectors.astype(np.float16 if self.options.dtype == "float16" else np.float32)
        errors = {**prepared.texts.errors, **computed.failed}
        for row in np.flatnonzero(~np.isfinite(written).all(axis=1)).tolist():
            held = self.options.dtype if np.isfinite(vectors[row]).all() else "the model's dtype"
            errors.setdefault(row, f"the embedding is not finite: it overflows in {held}")
        missing = np.bincount(sequences.rows, minlength=count) == 0
        missing[list(errors)] = True
        column = pa.FixedSizeListArray.from_arrays(pa.array(written.ravel()), self.width, mask=pa.array(missing))
        figures = {**prepared.figures(), "texts": float(count)}
        return RowResults([column.cast(self.fields[0].type)], errors, figures)

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Tokens, and what was cut."""
        return told(figures)
