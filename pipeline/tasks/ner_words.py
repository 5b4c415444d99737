"""The word that each token belongs to. GPT-2's tokens know no words: they are given, or made out by spaces.

Shapes: T tokens of all texts. Words are numbered through all texts; a token's text and characters are as in `Tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.tasks.entities import Ints
from pipeline.tasks.sequences import offsets_of

SPACE = ord(" ")


def spaced_words(texts: Sequence[str], token_texts: Ints, chars: Ints, unknown: npt.NDArray[np.bool_]) -> Ints:
    """The word [T] of each token, by the rule of transformers' pipeline (`gather_pre_entities`).

    A token begins a word at the text's start, where a space is its first character or the one before, and where it is
    the tokenizer's unknown token. Other than there, one that begins within a character goes with the token before.
    """
    spaces = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32) == SPACE
    starts = chars[:, 0]
    places = offsets_of([len(text) for text in texts])[token_texts] + starts
    begins = (starts == 0) | spaces[places] | spaces[places - 1] | unknown
    new_text = np.diff(token_texts, prepend=-1) != 0
    within = starts < np.roll(chars[:, 1], 1)
    words: Ints = np.cumsum(new_text | (begins & ~within)) - 1
    return words


def given_words(lists: Sequence[Sequence[str]], token_texts: Ints, chars: Ints) -> Ints:
    """The word [T] that each token ends in, of texts that are these words with a space between; -1 for none."""
    lengths = np.array([len(word) for words in lists for word in words], np.int64)
    starts = offsets_of(lengths + 1)
    text_starts = starts[offsets_of([len(words) for words in lists])]
    lasts = text_starts[token_texts] + chars[:, 1] - 1
    words = np.searchsorted(starts, lasts, side="right") - 1
    return np.where(lasts < starts[words] + lengths[words], words, -1)
