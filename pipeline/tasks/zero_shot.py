"""Classification without a classifier: which label does the language-model head expect after the text?

The template's words around the text are the prompt, computed once; each label, with what follows it in the template, is
a continuation of it. A label's score is its share of exp(log-likelihood) among all labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import AfterValidator, Field

from pipeline.errors import JobError
from pipeline.options import Options
from pipeline.tasks.likelihoods import Forks, ForkScores, Normalization, likelihoods, normalized
from pipeline.tasks.prompts import encode_pairs, start_token
from pipeline.tasks.rows import RowTexts, read_texts
from pipeline.tasks.sequences import Ids

if TYPE_CHECKING:
    from gpt2model import GPT2Config, GPT2Tokenizer
    from pipeline.batching import PackRunner

TEXT, LABEL = "{text}", "{label}"
# A prompt with each label: all tokens, and how many of them are the prompt's.
Fork = list[tuple[Ids, int]]


def _checked(template: str) -> str:
    if template.count(TEXT) != 1 or template.count(LABEL) != 1 or template.index(LABEL) < template.index(TEXT):
        raise ValueError(
            f"{template!r} must hold {TEXT} once and, behind it, {LABEL} once, so that the labels share their prompt"
        )
    return template


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise ValueError(f"{labels} must be different from each other, and none of them blank")
    return labels


class ZeroShotOptions(Options):
    """Labels and template of a classification by the language-model head."""

    labels: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]
    """The labels, in the words that the model is to expect."""
    template: Annotated[str, AfterValidator(_checked)] = "{text}\n\nThis text is about {label}."
    """What the model reads: holds {text} and, behind it, {label}."""
    normalize: Normalization = "none"
    """Divide a label's log-likelihood by its tokens, or by its UTF-8 bytes."""


@dataclass(frozen=True, slots=True)
class ZeroShotRows:
    """A group of rows in tokens."""

    texts: RowTexts
    errors: Mapping[int, str]
    forks: Forks
    cut: int
    """Texts that did not fit into the context whole."""


class ZeroShot:
    """Prompts and labels over one tokenizer and one model's context."""

    def __init__(self, options: ZeroShotOptions, keep_end: bool, tokenizer: GPT2Tokenizer, config: GPT2Config) -> None:
        """`keep_end` says which side of a text that is too long stays."""
        self.options = options
        self.tokenizer = tokenizer
        self._keep_end = keep_end
        self._before, rest = options.template.split(TEXT)
        self._between, after = rest.split(LABEL)
        self.continuations = [label + after for label in options.labels]
        start = start_token(tokenizer)
        self._start = np.array([] if start is None else [start], np.int64)
        # The last token of a label is predicted and takes no place.
        self.room = config.n_positions + 1
        (fork,) = self._encoded([""])
        empty, taken = fork[0][1], max(len(ids) for ids, _ in fork)
        if taken >= self.room:
            raise JobError(
                f"classify.zero_shot: template and longest label take {taken} tokens, and the context of "
                f"{config.n_positions} must hold the text as well: give a shorter template or shorter labels"
            )
        if empty == 0:
            raise JobError(
                "classify.zero_shot.template begins with the text, and the tokenizer has neither a bos nor an eos "
                "token that an empty text could begin with: put a word before {text}"
            )

    def _excess(self, fork: Fork) -> int:
        """Tokens of a prompt with its longest label that the context has no room for."""
        return max(len(ids) for ids, _ in fork) - self.room

    def _encoded(self, texts: list[str]) -> list[Fork]:
        """For each text its prompt with each label."""
        prompts = [self._before + text + self._between for text in texts]
        pairs = [(prompt, label) for prompt in prompts for label in self.continuations]
        encoded = encode_pairs(pairs, self.tokenizer, self._start)
        labels = len(self.continuations)
        return [encoded[at : at + labels] for at in range(0, len(encoded), labels)]

    def prepare(self, rows: pa.Table, inputs: Mapping[str, Any]) -> ZeroShotRows:
        """Tokenize the texts with every label."""
        texts = read_texts(rows, inputs)
        errors = dict(texts.errors)
        given = [text for (text,) in texts.values]
        kept, prompts, continuations, cut = [], [], [], 0
        for row, text, whole in zip(texts.rows, given, self._encoded(given), strict=True):
            fork = whole
            if self._excess(fork) > 0:
                (fork,) = self._encoded([self._shortened(text)])
                cut += 1
            if reason := self._refusal(fork):
                errors[row] = reason
                continue
            kept.append(row)
            prompts.append(fork[0][0][: fork[0][1]])
            continuations.append([ids[length:] for ids, length in fork])
        return ZeroShotRows(texts, errors, Forks(kept, prompts, continuations), cut)

    def _refusal(self, fork: Fork) -> str | None:
        if fork[0][1] == 0:
            return "the prompt is empty, and the tokenizer has neither a bos nor an eos token that it could begin with"
        for label, (ids, given) in zip(self.options.labels, fork, strict=True):
            if given == len(ids):
                return f"label {label!r} has no tokens of its own behind this text: put a space before {LABEL}"
        return "text and labels do not fit into the model's context" if self._excess(fork) > 0 else None

    def _shortened(self, text: str) -> str:
        """As much of a text as fits, cut between tokens and, as its new end may be read otherwise, cut again."""
        kept = text.rstrip()  # white space at the end would go to the labels
        ragged = self.tokenizer.encode_ragged([kept], return_chars=True)
        assert ragged.chars is not None
        left, whole = len(ragged.ids), kept
        while left > 0 and (excess := self._excess(self._encoded([kept])[0])) > 0:
            left = max(0, left - excess)
            first = int(ragged.chars[len(ragged.ids) - left][0]) if left else len(whole)
            last = int(ragged.chars[left - 1][1]) if left else 0
            kept = whole[first:] if self._keep_end else whole[:last].rstrip()
        return kept

    def compute(self, model: Any, prepared: ZeroShotRows, runner: PackRunner) -> ForkScores:
        """Log-likelihood of every label."""
        return likelihoods(model, prepared.forks, runner)

    def logits(self, prepared: ZeroShotRows, computed: ForkScores) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[forks, labels]; a softmax over them is the scores."""
        rows = [
            normalized(found, self.options.normalize, [len(each) for each in tokens], self.options.labels)
            for tokens, found in zip(prepared.forks.continuations, computed.scores, strict=True)
        ]
        return np.stack(rows) if rows else np.zeros((0, len(self.options.labels)))
