"""choose: which of several continuations fits a prompt best.

Reads `prompt` and `choices` (a list of texts). Writes `choice`, the number of the best one (the first among equals),
and `scores`: the multiple-choice head's logits where the checkpoint is a GPT2DoubleHeadsModel, else each choice's
log-likelihood after the prompt by the language-model head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.likelihoods import Forks, ForkScores, Normalization, choice_logits, likelihoods, normalized
from pipeline.tasks.prompts import DOUBLE_HEADS, encode_pairs, language_model, start_token
from pipeline.tasks.rows import Holds, RowResults, RowTexts, list_column, read_texts
from pipeline.tasks.sequences import Ids

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from pipeline.batching import PackRunner


class ChooseOptions(Options):
    """Options of the choose task."""

    normalize: Normalization = "none"
    """Divide a choice's log-likelihood by its tokens, or by its UTF-8 bytes."""
    separator: str = " "
    """Put between prompt and choice, unless white space is there already."""


@dataclass(frozen=True, slots=True)
class ChooseRows:
    """A group of rows in tokens."""

    texts: RowTexts
    errors: Mapping[int, str]
    forks: Forks
    cut: int
    """Prompts that lost their beginning."""


class ChooseTask:
    """The choose task over one tokenizer and one model."""

    inputs: Mapping[str, Holds] = {"prompt": Holds.TEXT, "choices": Holds.TEXTS}
    fields = (pa.field("choice", pa.int32()), pa.field("scores", pa.list_(pa.float32())))

    def __init__(
        self, options: ChooseOptions, columns: Mapping[str, str], tokenizer: GPT2Tokenizer, config: GPT2Config
    ) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.by_head = self.architecture(options, config) == DOUBLE_HEADS
        # The last token of a choice is predicted and takes no place; the multiple-choice head reads it.
        self.room = config.n_positions + (0 if self.by_head else 1)
        closing = [tokenizer.cls_token_id] if self.by_head and tokenizer.cls_token_id is not None else []
        self._closing = np.array(closing, np.int64)
        if self.by_head and options.normalize != "none":
            raise JobError(
                f"choose.normalize is {options.normalize}, and the checkpoint scores choices by its multiple-choice "
                "head, whose logits have no length: give choose.normalize=none"
            )
        if self.by_head and not (config.summary_use_proj and config.summary_proj_to_labels):
            raise JobError(
                "the checkpoint's multiple-choice head gives a vector and no score (summary_use_proj or "
                "summary_proj_to_labels is false in its config.json): name one that scores choices"
            )
        start = start_token(tokenizer)
        self._start = np.array([] if start is None else [start], np.int64)

    @staticmethod
    def architecture(options: ChooseOptions, config: GPT2Config) -> str:
        """The double heads where the checkpoint has them, else the language-model head."""
        return language_model(config)

    def prepare(self, rows: pa.Table) -> ChooseRows:
        """Tokenize each prompt with each of its choices."""
        texts = read_texts(rows, self.inputs)
        errors = dict(texts.errors)
        kept, prompts, continuations, cut = [], [], [], 0
        pairs = [(prompt, self._joined(prompt, choice)) for prompt, choices in texts.values for choice in choices]
        encoded = iter(encode_pairs(pairs, self.tokenizer, self._start))
        for row, (_, choices) in zip(texts.rows, texts.values, strict=True):
            fork = [next(encoded) for _ in choices]
            reason = self._refusal(fork)
            if reason:
                errors[row] = reason
                continue
            prompt, own = self._split(fork)
            fitting = prompt[max(0, len(prompt) - (self.room - max(map(len, own)))) :]
            cut += len(fitting) < len(prompt)
            kept.append(row)
            prompts.append(fitting)
            continuations.append(own)
        return ChooseRows(texts, errors, Forks(kept, prompts, continuations), cut)

    def _joined(self, prompt: str, choice: str) -> str:
        spaced = not prompt or prompt[-1].isspace() or choice[:1].isspace()
        return choice if spaced else self.options.separator + choice

    def _split(self, fork: Sequence[tuple[Ids, int]]) -> tuple[Ids, list[Ids]]:
        """The prompt's tokens, which all pairs begin with, and each choice's; the head reads a closing cls token."""
        ids, given = fork[0]
        return ids[:given], [np.concatenate([own[length:], self._closing]) for own, length in fork]

    def _refusal(self, fork: Sequence[tuple[Ids, int]]) -> str | None:
        if not fork:
            return "choices is empty"
        if min(given for _, given in fork) == 0:
            return "prompt is empty, and the tokenizer has neither a bos nor an eos token that it could begin with"
        for place, (ids, given) in enumerate(fork):
            if given == len(ids):
                return f"choices[{place}] has no tokens after the prompt"
            tokens, room = len(ids) - given + len(self._closing), self.room - 1
            if tokens > room:
                return f"choices[{place}] has {tokens} tokens, and the model's context leaves {room} behind a prompt"
        return None

    def num_tokens(self, prepared: ChooseRows) -> int:
        """Tokens of all prompts and choices."""
        return int(prepared.forks.lengths.sum())

    def compute(self, model: Any, prepared: ChooseRows, runner: PackRunner) -> ForkScores:
        """A score for each choice."""
        return (choice_logits if self.by_head else likelihoods)(model, prepared.forks, runner)

    def finish(self, prepared: ChooseRows, computed: ForkScores) -> RowResults:
        """The best choice and all scores."""
        errors = {**prepared.errors, **computed.failed}
        choices_of = dict(zip(prepared.texts.rows, prepared.texts.values, strict=True))
        best: list[int | None] = [None] * prepared.texts.count
        counts = np.zeros(prepared.texts.count, np.int64)
        scores = []
        forks = zip(prepared.forks.rows, prepared.forks.continuations, computed.scores, strict=True)
        for row, tokens, found in forks:
            if row in errors:
                continue
            own = normalized(found, self.options.normalize, [len(each) for each in tokens], choices_of[row][1])
            best[row], counts[row] = int(np.argmax(own)), len(own)
            scores.append(own)
        missing = np.array([each is None for each in best], np.bool_)
        flat = pa.array(np.concatenate(scores) if scores else np.zeros(0), pa.float64())
        columns = [pa.array(best, pa.int32()), list_column(flat, counts, missing, self.fields[1].type)]
        figures = {
            "tokens": float(self.num_tokens(prepared)),
            "choices": float(counts.sum()),
            "cut": float(prepared.cut),
        }
        return RowResults(columns, errors, figures)

    def summarize(self, figures: Mapping[str, float]) -> dict[str, float | None]:
        """Tokens and choices, and prompts that were cut."""
        lines: dict[str, float | None] = {"tokens": figures.get("tokens", 0), "choices": figures.get("choices", 0)}
        return {**lines, **({"prompts cut at the left": cut} if (cut := figures.get("cut", 0)) else {})}
