"""score: how likely each row's text is, or its completion after its prompt.

Reads `text`, or `prompt` + `completion`. Writes loglikelihood (natural log, summed over the scored tokens),
num_tokens, perplexity = exp(-loglikelihood / num_tokens), bits_per_byte = -loglikelihood / (ln 2 * UTF-8 bytes),
is_greedy (with a completion: every token is the model's first choice), and on request the scored tokens one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks import windows
from pipeline.tasks.prompts import encode_pairs, language_model, start_token
from pipeline.tasks.rows import Holds, RowResults, RowTexts, as_binary, list_column, numbers, read_texts
from pipeline.tasks.sequences import Ids, Sequences, concatenate, lay_out, places

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from pipeline.batching import Index, PackRunner

IGNORED = -100


class ScoreOptions(Options):
    """Options of the score task."""

    window: Literal["rolling", "sliding"] = "rolling"
    """How texts longer than the context are cut: rolling as lm-evaluation-harness, sliding as Hugging Face's guide."""
    stride: Annotated[int, Field(gt=0)] | None = None
    """Tokens from one window to the next. null: rolling takes the whole context, sliding half of it."""
    start_token: Literal["bos", "none"] = "bos"
    """What the first token follows: the tokenizer's bos (eos where it has none), or nothing: then it isn't scored."""
    token_logprobs: bool = False
    """Also write `token_ids` and `token_logprobs`, one entry a scored token."""


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """A group of rows, ready for the model: one sequence a window."""

    texts: RowTexts
    bytes: npt.NDArray[np.int64]
    """UTF-8 bytes of each row's text, or of its completion."""
    words: npt.NDArray[np.int64]
    """Runs of characters other than white space in it."""
    windows: Sequences
    targets: npt.NDArray[np.int64]
    """For each token of the windows the one it predicts, or IGNORED."""
    truncated: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model said of a group: one entry for every input token; meaningless where the target is ignored."""

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_] | None
    failed: Mapping[int, str]


class ScoreTask:
    """The score task over one tokenizer and one model's context length."""

    def __init__(
        self, options: ScoreOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.context = config.n_positions
        pair = bool({"prompt", "completion"} & set(columns))
        if pair and "text" in columns:
            raise JobError("input.columns names both text and prompt / completion: score takes one or the other")
        self.inputs = dict.fromkeys(("prompt", "completion") if pair else ("text",), Holds.TEXT)
        if options.stride is not None and options.stride > config.n_positions:
            raise JobError(
                f"score.stride {options.stride} is longer than the model's context of {config.n_positions} tokens "
                f"and would leave tokens out: give {config.n_positions} or less"
            )
        if options.start_token == "bos" and start_token(tokenizer) is None:
            raise JobError(
                "score.start_token is bos, and the model's tokenizer has neither a bos nor an eos token: "
                "give score.start_token=none"
            )

    @staticmethod
    def architecture(options: ScoreOptions, config: GPT2Config) -> str:
        """Any checkpoint with a language-model head."""
        return language_model(config)

    @property
    def fields(self) -> tuple[pa.Field, ...]:
        """The result columns, without `error`."""
        fields = [
            pa.field("loglikelihood", pa.float64()),
            pa.field("num_tokens", pa.int32()),
            pa.field("perplexity", pa.float64()),
            pa.field("bits_per_byte", pa.float64()),
        ]
        if "completion" in self.inputs:
            fields.append(pa.field("is_greedy", pa.bool_()))
        if self.options.token_logprobs:
            fields.append(pa.field("token_ids", pa.list_(pa.int32())))
            fields.append(pa.field("token_logprobs", pa.list_(pa.float32())))
        return tuple(fields)

    def prepare(self, rows: pa.Table) -> ScoreRows:
        """Tokenize the input columns and cut them into windows."""
        texts = read_texts(rows, self.inputs)
        stride = self.options.stride or (
            self.context if self.options.window == "rolling" else max(self.context // 2, 1)
        )
        cut = windows.rolling if self.options.window == "rolling" else windows.sliding
        inputs, targets, window_rows, truncated = [], [], [], 0
        for row, (ids, context) in self._sequences(texts).items():
            for begin, end, first in cut(len(ids), context, self.context, stride):
                truncated += first == context and begin > 0 and context > 1
                target = ids[begin + 1 : end].copy()
                target[: first - begin - 1] = IGNORED
                inputs.append(ids[begin : end - 1])
                targets.append(target)
                window_rows.append(row)
        measured = as_binary(rows.column(list(self.inputs)[-1]))
        return ScoreRows(
            texts=texts,
            bytes=numbers(pc.binary_length(measured)),
            words=numbers(pc.count_substring_regex(measured, r"[^\s]+")),
            windows=lay_out(inputs, window_rows),
            targets=concatenate(targets),
            truncated=truncated,
        )

    def _sequences(self, texts: RowTexts) -> dict[int, tuple[Ids, int]]:
        """Row -> its tokens with what they follow, and how many of them are given."""
        start = start_token(self.tokenizer) if self.options.start_token == "bos" else None
        prefix = np.array([] if start is None else [start], np.int64)
        if "text" in self.inputs:
            ragged = self.tokenizer.encode_ragged([text for (text,) in texts.values])
            return {row: (np.concatenate([prefix, ids]), 1) for row, ids in zip(texts.rows, ragged, strict=True)}
        encoded = encode_pairs(texts.values, self.tokenizer, prefix)
        # What follows nothing is not scored, so the first token is given at least.
        return {row: (ids, max(1, given)) for row, (ids, given) in zip(texts.rows, encoded, strict=True)}

    def num_tokens(self, prepared: ScoreRows) -> int:
        """Tokens in all windows."""
        return len(prepared.targets)

    def compute(self, model: Any, prepared: ScoreRows, runner: PackRunner) -> Scores:
        """Log-probabilities of every target."""
        import torch

        from gpt2model.scoring import token_logprobs

        logprobs = np.zeros(len(prepared.targets), np.float32)
        greedy = np.zeros(len(prepared.targets), np.bool_) if "completion" in self.inputs else None

        def call(index: Index) -> None:
            where = places(prepared.windows.spans(index))
            packed = prepared.windows.packed(index, model.device)
            targets = torch.from_numpy(prepared.targets[where]).to(model.device)
            found, first_choice = token_logprobs(model, packed, targets, greedy=greedy is not None)
            logprobs[where] = found.cpu().numpy()
            if greedy is not None and first_choice is not None:
                greedy[where] = first_choice.cpu().numpy()

        failed = runner.run(prepared.windows.lengths, call)
        return Scores(logprobs, greedy, prepared.windows.rows_of(failed))

    def finish(self, prepared: ScoreRows, computed: Scores) -> RowResults:
        """Sum tokens to rows: the result columns, the errors and the figures of the group."""
        count = prepared.texts.count
        all_rows = np.repeat(prepared.windows.rows, prepared.windows.lengths)
        errors = {**prepared.texts.errors, **computed.failed, **_not_finite(all_rows, computed.logprobs)}
        bad = np.zeros(count, np.bool_)
        bad[list(errors)] = True
        scored = (prepared.targets != IGNORED) & ~bad[all_rows]
        token_rows = all_rows[scored]
        tokens = np.bincount(token_rows, minlength=count)
        loglikelihood = np.bincount(token_rows, computed.logprobs[scored].astype(np.float64), minlength=count)
        units = prepared.bytes
        columns = [
            pa.array(loglikelihood, mask=bad),
            pa.array(tokens.astype(np.int32), mask=bad),
            pa.array(np.exp(-loglikelihood / np.maximum(tokens, 1)), mask=bad | (tokens == 0)),
            pa.array(-loglikelihood / (math.log(2) * np.maximum(units, 1)), mask=bad | (tokens == 0)),
        ]
        if computed.greedy is not None:
            misses = np.bincount(token_rows[~computed.greedy[scored]], minlength=count)
            columns.append(pa.array(misses == 0, mask=bad))
        if self.options.token_logprobs:
            for values, kind in ((prepared.targets[scored], pa.int32()), (computed.logprobs[scored], pa.float32())):
                columns.append(list_column(pa.array(values), tokens, bad, pa.list_(kind)))
        good = ~bad
        figures = {
            "tokens": float(tokens[good].sum()),
            "loglikelihood": float(loglikelihood[good].sum()),
            "words": float(prepared.words[good].sum()),
            "bytes": float(units[good].sum()),
            "truncated": float(prepared.truncated),
        }
        return RowResults(columns, errors, figures)

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Corpus figures, weighted by token: exp(-loglikelihood / N) with N the tokens, the words, the bytes."""
        loglikelihood = figures.get("loglikelihood", 0.0)

        def perplexity(unit: str) -> float | None:
            count = figures.get(unit, 0)
            return math.exp(-loglikelihood / count) if count and -loglikelihood / count < 700 else None

        return {
            "scored tokens": figures.get("tokens", 0),
            "perplexity per token": perplexity("tokens"),
            "perplexity per word": perplexity("words"),
            "perplexity per byte": perplexity("bytes"),
            **({"rows with a prompt cut at the left": cut} if (cut := figures.get("truncated", 0)) else {}),
        }


def _not_finite(rows: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float32]) -> dict[int, str]:
    """Rows whose numbers the dtype could not hold."""
    wrong = np.unique(rows[~np.isfinite(logprobs)])
    return {int(row): "the log-likelihood is not finite: the model overflows in this dtype" for row in wrong}
