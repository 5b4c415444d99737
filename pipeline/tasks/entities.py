"""From each token's probabilities to entities, as transformers' TokenClassificationPipeline makes them, in arrays.

Shapes: T tokens of all texts, U units, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.tasks.ner_labels import Labels

Strategy = Literal["none", "simple", "first", "average", "max"]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of several texts, one text after the other."""

    texts: Ints
    """[T]: the text each belongs to."""
    chars: Ints
    """[T, 2]: the characters of that text that it covers."""
    words: Ints
    """[T]: the word it belongs to; words are numbered through all texts."""

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> Tokens:
        """The chosen tokens."""
        return Tokens(self.texts[chosen], self.chars[chosen], self.words[chosen])


@dataclass(frozen=True, slots=True)
class Units:
    """Stretches of tokens under one label: single tokens, words, or entities."""

    firsts: Ints
    """[U]: the first token."""
    lasts: Ints
    """[U]: the last token."""
    labels: Ints
    """[U]"""
    scores: Floats
    """[U]"""

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> Units:
        """The chosen units."""
        return Units(self.firsts[chosen], self.lasts[chosen], self.labels[chosen], self.scores[chosen])


@dataclass(frozen=True, slots=True)
class Entity:
    """A stretch of one text, `word`, which is what its characters [start, end) are."""

    text: int
    name: str
    score: float
    word: str
    start: int
    end: int


def make_units(probabilities: npt.NDArray[np.float32], words: Ints, strategy: Strategy) -> Units:
    """The units that a strategy labels, from probabilities [T, K] and words [T]: tokens, or words.

    A word takes the label of its `first` token, of the token that is surest (`max`), or of the `average`
    (`aggregate_word`).
    """
    tokens = np.arange(len(probabilities))
    labels, scores = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float64)
    if strategy in ("none", "simple"):
        return Units(tokens, tokens, labels, scores)
    firsts = np.flatnonzero(np.diff(words, prepend=-1))
    lasts = np.append(firsts[1:], len(words))[: len(firsts)] - 1
    if strategy == "average":
        means = _means(probabilities.astype(np.float64), firsts, lasts)
        return Units(firsts, lasts, means.argmax(axis=1), means.max(axis=1))
    chosen = firsts if strategy == "first" else _surest(scores, firsts, lasts)
    return Units(firsts, lasts, labels[chosen], scores[chosen])


def group_units(units: Units, texts: Ints, labels: Labels) -> Units:
    """Neighbours of one group as one unit with their mean score, cut where labels begin or end (`group_entities`).

    `texts` [T] are the tokens' texts; no group goes beyond its text.
    """
    if not len(units.labels):
        return units
    before, after = units.labels[:-1], units.labels[1:]
    cuts = (
        (np.diff(texts[units.firsts]) != 0)
        | (labels.group_ids[before] != labels.group_ids[after])
        | labels.ends[before]
        | labels.begins[after]
    )
    firsts = np.flatnonzero(np.append(True, cuts))
    lasts = np.append(firsts[1:], len(units.labels)) - 1
    scores = _means(units.scores, firsts, lasts)
    return Units(units.firsts[firsts], units.lasts[lasts], units.labels[firsts], scores)


def find_entities(
    texts: Sequence[str], tokens: Tokens, units: Units, labels: Labels, strategy: Strategy
) -> list[Entity]:
    """The entities that units make: in order, apart from each other, without white space at their ends.

    Characters that two entities share, being split between their tokens, are the first one's. One that has no
    characters left but white space is none.
    """
    found = units if strategy == "none" else group_units(units, tokens.texts, labels)
    found = found[~labels.outside[found.labels]]
    names = labels.names if strategy == "none" else labels.groups
    columns = (tokens.texts[found.firsts], tokens.chars[found.firsts, 0], tokens.chars[found.lasts, 1])
    entities: list[Entity] = []
    for text, start, end, label, score in zip(
        *(each.tolist() for each in (*columns, found.labels, found.scores)), strict=True
    ):
        if entities and entities[-1].text == text:
            start = max(start, entities[-1].end)
        piece = texts[text][start:end]
        if word := piece.strip():
            start += len(piece) - len(piece.lstrip())
            entities.append(Entity(text, names[label], score, word, start, start + len(word)))
    return entities


def _means(values: Floats, firsts: Ints, lasts: Ints) -> Floats:
    """Mean over each stretch of the first axis."""
    if not len(firsts):
        return values[:0]
    counts = (lasts - firsts + 1).reshape(-1, *[1] * (values.ndim - 1))
    means: Floats = np.add.reduceat(values, firsts, axis=0) / counts
    return means


def _surest(scores: Floats, firsts: Ints, lasts: Ints) -> Ints:
    """The token of each stretch with the highest score, the first of several."""
    if not len(firsts):
        return firsts
    stretches = np.repeat(np.arange(len(firsts)), lasts - firsts + 1)
    highest = np.flatnonzero(scores == np.maximum.reduceat(scores, firsts)[stretches])
    return highest[np.unique(stretches[highest], return_index=True)[1]]
