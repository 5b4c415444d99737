"""score: how likely each row's text is, or its completion after its prompt.

Reads `text`, or `prompt` + `completion`. Writes loglikelihood (natural log, summed over the scored tokens),
num_tokens, perplexity = exp(-loglikelihood / num_tokens), bits_per_byte = -loglikelihood / (ln 2 * UTF-8 bytes),
is_greedy (with a completion: every token is the model's first choice), and on request the scored tokens one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks import windows
from pipeline.tasks.rows import RowResults, RowTexts, is_text, read_texts

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
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
    """A group of rows, ready for the model: windows laid end to end."""

    texts: RowTexts
    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    window_rows: npt.NDArray[np.int64]
    truncated: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model said of a group: one entry for every input token; meaningless where the target is ignored."""

    logprobs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_] | None
    failed: Mapping[int, str]


class ScoreTask:
    """The score task over one tokenizer and one model's context length."""

    architecture = "GPT2LMHeadModel"

    def __init__(self, options: ScoreOptions, columns: Mapping[str, str]) -> None:
        self.options = options
        pair = bool({"prompt", "completion"} & set(columns))
        if pair and "text" in columns:
            raise JobError("input.columns names both text and prompt / completion: score takes one or the other")
        self.inputs: tuple[str, ...] = ("prompt", "completion") if pair else ("text",)

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

    def accepts(self, kind: pa.DataType) -> bool:
        """Every input is text."""
        return is_text(kind)

    def check(self, tokenizer: GPT2Tokenizer, config: GPT2Config) -> None:
        """Refuse, before anything starts, options that this checkpoint can't honour."""
        if self.options.stride is not None and self.options.stride > config.n_positions:
            raise JobError(
                f"score.stride {self.options.stride} is longer than the model's context of {config.n_positions} tokens "
                f"and would leave tokens out: give {config.n_positions} or less"
            )
        if self.options.start_token == "bos" and _start_token(tokenizer) is None:
            raise JobError(
                "score.start_token is bos, and the model's tokenizer has neither a bos nor an eos token: "
                "give score.start_token=none"
            )

    def prepare(self, rows: pa.Table, tokenizer: GPT2Tokenizer, config: GPT2Config) -> ScoreRows:
        """Tokenize the input columns and cut them into windows."""
        texts = read_texts(rows, self.inputs)
        sequences = self._sequences(texts, tokenizer)
        stride = self.options.stride or (
            config.n_positions if self.options.window == "rolling" else max(config.n_positions // 2, 1)
        )
        cut = windows.rolling if self.options.window == "rolling" else windows.sliding
        inputs, targets, window_rows, truncated = [], [], [], 0
        for row, (ids, context) in sequences.items():
            for begin, end, first in cut(len(ids), context, config.n_positions, stride):
                truncated += first == context and begin > 0 and context > 1
                target = ids[begin + 1 : end].copy()
                target[: first - begin - 1] = IGNORED
                inputs.append(ids[begin : end - 1])
                targets.append(target)
                window_rows.append(row)
        lengths = np.fromiter(map(len, inputs), np.int64, len(inputs))
        return ScoreRows(
            texts=texts,
            inputs=_concatenate(inputs),
            targets=_concatenate(targets),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            window_rows=np.array(window_rows, np.int64),
            truncated=truncated,
        )

    def _sequences(self, texts: RowTexts, tokenizer: GPT2Tokenizer) -> dict[int, tuple[npt.NDArray[np.int64], int]]:
        """Row -> its tokens with what they follow, and how many of them are given."""
        start = _start_token(tokenizer) if self.options.start_token == "bos" else None
        prefix = np.array([] if start is None else [start], np.int64)
        if self.inputs == ("text",):
            ragged = tokenizer.encode_ragged([text for (text,) in texts.values])
            return {row: (np.concatenate([prefix, ids]), 1) for row, ids in zip(texts.rows, ragged, strict=True)}
        return _pairs(texts, tokenizer, prefix)

    def num_tokens(self, prepared: ScoreRows) -> int:
        """Tokens in all windows."""
        return len(prepared.inputs)

    def compute(self, model: GPT2LMHeadModel, prepared: ScoreRows, runner: PackRunner) -> Scores:
        """Log-probabilities of every target."""
        import torch

        from gpt2model.packing import pack
        from gpt2model.scoring import token_logprobs

        logprobs = np.zeros(len(prepared.inputs), np.float32)
        greedy = np.zeros(len(prepared.inputs), np.bool_) if "completion" in self.inputs else None

        def call(windows: Index) -> None:
            spans = [slice(prepared.offsets[each], prepared.offsets[each + 1]) for each in windows]
            packed = pack([prepared.inputs[span] for span in spans]).to(model.device)
            targets = torch.from_numpy(np.concatenate([prepared.targets[span] for span in spans])).to(model.device)
            found, first_choice = token_logprobs(model, packed, targets, greedy=greedy is not None)
            places = np.concatenate([np.arange(span.start, span.stop) for span in spans])
            logprobs[places] = found.cpu().numpy()
            if greedy is not None and first_choice is not None:
                greedy[places] = first_choice.cpu().numpy()

        failed = runner.run(np.diff(prepared.offsets), call)
        return Scores(logprobs, greedy, {int(prepared.window_rows[each]): why for each, why in failed.items()})

    def finish(self, prepared: ScoreRows, computed: Scores) -> RowResults:
        """Sum tokens to rows: the result columns, the errors and the figures of the group."""
        count = prepared.texts.count
        all_rows = np.repeat(prepared.window_rows, np.diff(prepared.offsets))
        errors = {**prepared.texts.errors, **computed.failed, **_not_finite(all_rows, computed.logprobs)}
        bad = np.zeros(count, np.bool_)
        bad[list(errors)] = True
        scored = (prepared.targets != IGNORED) & ~bad[all_rows]
        token_rows = all_rows[scored]
        tokens = np.bincount(token_rows, minlength=count)
        loglikelihood = np.bincount(token_rows, computed.logprobs[scored].astype(np.float64), minlength=count)
        units = prepared.texts.bytes
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
            ends = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32)
            offsets = pa.array(ends, mask=np.append(bad, False))
            for values in (prepared.targets[scored].astype(np.int32), computed.logprobs[scored]):
                columns.append(pa.ListArray.from_arrays(offsets, pa.array(values)))
        good = ~bad
        figures = {
            "tokens": float(tokens[good].sum()),
            "loglikelihood": float(loglikelihood[good].sum()),
            "words": float(prepared.texts.words[good].sum()),
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


def _start_token(tokenizer: GPT2Tokenizer) -> int | None:
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def _concatenate(arrays: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def _pairs(
    texts: RowTexts, tokenizer: GPT2Tokenizer, prefix: npt.NDArray[np.int64]
) -> dict[int, tuple[npt.NDArray[np.int64], int]]:
    """Prompt and completion as lm-evaluation-harness encodes them.

    The prompt is encoded alone, the completion is what the whole has behind as many tokens; spaces at the prompt's end
    belong to the completion. An empty prompt is the start token, which is not put before a prompt of its own.
    """
    whole = tokenizer.encode_ragged([prompt + completion for prompt, completion in texts.values])
    alone = tokenizer.encode_ragged([prompt.rstrip() for prompt, _ in texts.values])
    sequences = {}
    for place, row in enumerate(texts.rows):
        given, ids = alone[place], whole[place]
        if len(given):
            sequences[row] = (np.concatenate([given, ids[len(given) :]]), len(given))
        else:
            # A completion that begins with the start token is its own context.
            begun = len(ids) > 0 and np.array_equal(ids[:1], prefix)
            sequences[row] = (ids if begun else np.concatenate([prefix, ids]), 1)
    return sequences
