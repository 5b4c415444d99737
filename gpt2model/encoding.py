"""What the tokenizer answers with, and the arithmetic of cutting and filling up to a length.

Nothing here sets truncation or padding on the library's tokenizer: that is state, shared by every thread that encodes.
The library's `Encoding` can be cut and filled by itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from gpt2model.errors import TokenizerError

if TYPE_CHECKING:
    import torch

TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = ("longest", "max_length", "do_not_pad")


class CharSpan(NamedTuple):
    """Characters `start` up to, without, `end` of the text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` up to, without, `end` of a row."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Ragged:
    """Token ids of many texts, end to end.

    ids: [tokens] int64. offsets: [texts + 1] int64; text i has `ids[offsets[i]:offsets[i + 1]]`, which is `self[i]`.
    chars: [tokens, 2] int64, where asked for: the characters of its text that each token covers, (0, 0) for an added
    one.
    """

    ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    chars: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """Ids of one text: a view, no copy."""
        row = range(len(self))[index]
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, [texts]."""
        return np.diff(self.offsets)


class BatchEncoding(dict[str, Any]):
    """The tokenizer's answer: a dict to be passed on as `model(**encoding)`, which also knows words and characters.

    Lists hold one entry a row, or are the row itself where a single text was given; tensors are [rows, tokens].
    `encoding.input_ids` is `encoding["input_ids"]`. The methods below take the row first, and only the position where
    there is one row; they exist for what `__call__` returned, not for what `pad` did.
    """

    def __init__(self, data: dict[str, Any], encodings: Sequence[Encoding] = ()) -> None:
        super().__init__(data)
        self._encodings = list(encodings)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}; it has {sorted(self)}") from None

    def __reduce__(self) -> tuple[type[Self], tuple[dict[str, Any], list[Encoding]]]:
        return type(self), (dict(self), self.encodings)

    @property
    def encodings(self) -> list[Encoding]:
        """The library's own results, one a row; empty where the rows did not come from text."""
        return self._encodings

    def to(self, device: "str | int | torch.device", *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in this object, and return it."""
        for name, value in self.items():
            self[name] = value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Tokens of a row, as the vocabulary spells them."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the index of its word (of the given words, or of the pre-tokenizer's); None where none."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 or 1, the sequence of a pair it comes from; None for added tokens and padding."""
        return self._row(batch_index).sequence_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The sequence a token comes from."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.token_to_sequence(_from_end(token, row))

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word a token comes from."""
        row, token = self._place(batch_or_token_index, token_index)
        return row.token_to_word(_from_end(token, row))

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters a token covers (of its word, where the text was given in words)."""
        row, token = self._place(batch_or_token_index, token_index)
        span = row.token_to_chars(token)
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; None where it has none."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that covers a character; None where none does."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that holds a character; None where none does."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def _row(self, index: int) -> Encoding:
        if not self.encodings:
            raise TokenizerError("words and characters are known only to what the tokenizer's __call__ returned")
        return self.encodings[index]

    def _place(self, batch_or_position: int, position: int | None) -> tuple[Encoding, int]:
        if position is None:
            return self._row(0), batch_or_position
        return self._row(batch_or_position), position


def _from_end(position: int, row: Encoding) -> int:
    return position + len(row.ids) if position < 0 else position


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cut rows to `max_length` tokens, the template's included; overflow repeats `stride` tokens."""

    strategy: str
    max_length: int
    stride: int
    side: str

    def apply(self, first: Encoding, second: Encoding | None, added: int, place: str) -> None:
        """Cut the encodings of one row in place; what was cut stays with them as `overflowing`.

        Raises TokenizerError where the strategy cannot reach the length, or where the stride does not fit.
        """
        room = self.max_length - added
        if room < 0:
            raise TokenizerError(f"max_length={self.max_length} is less than the {added} special tokens of a row")
        excess = len(first.ids) + (len(second.ids) if second else 0) - room
        if excess <= 0:
            return
        keep_first, keep_second = self._kept(len(first.ids), None if second is None else len(second.ids), room, place)
        self._cut(first, keep_first, place)
        if second is not None:
            self._cut(second, keep_second, place)

    def _kept(self, first: int, second: int | None, room: int, place: str) -> tuple[int, int]:
        """Tokens to keep of each sequence, `first + second` being more than `room`."""
        if room == 0:
            return 0, 0
        if self.strategy == "longest_first":
            return (room, 0) if second is None else _share(first, second, room)
        if self.strategy == "only_second" and second is None:
            raise TokenizerError(f"truncation='only_second', but {place} has no second sequence: give text_pair")
        kept = (room - (second or 0), second or 0) if self.strategy == "only_first" else (first, room - first)
        if min(kept) < 0 or kept[self.strategy == "only_second"] == 0:
            raise TokenizerError(
                f"truncation={self.strategy!r} cannot bring {place} ({first} and {second or 0} tokens) to"
                f" max_length={self.max_length}: use 'longest_first' or a greater max_length"
            )
        return kept

    def _cut(self, encoding: Encoding, keep: int, place: str) -> None:
        if 0 < keep < len(encoding.ids) and self.stride >= keep:  # the library would panic
            raise TokenizerError(
                f"stride={self.stride} must be less than the {keep} tokens that max_length={self.max_length} leaves"
                f" of {place}"
            )
        encoding.truncate(keep, stride=self.stride, direction=self.side)


def _share(first: int, second: int, room: int) -> tuple[int, int]:
    """Take from the longer until both are equally long, then from both; of an odd room the longer gets one more."""
    shorter = min(first, second)
    small, large = (shorter, room - shorter) if 2 * shorter <= room else (room // 2, room - room // 2)
    return (large, small) if first > second else (small, large)


@dataclass(frozen=True, slots=True)
class Padding:
    """Fill rows to `length` tokens, or to the longest row where that is None, and on to a multiple."""

    length: int | None
    multiple: int | None
    side: str
    pad_id: int
    pad_token: str

    def target(self, lengths: Sequence[int]) -> int:
        """The length that rows of these lengths are filled to."""
        length = max(lengths, default=0) if self.length is None else self.length
        return length if not self.multiple else -(-length // self.multiple) * self.multiple

    def apply(self, rows: Sequence[Encoding]) -> None:
        """Fill the encodings, and their overflow, in place."""
        target = self.target([len(row.ids) for row in rows])
        for row in rows:
            row.pad(target, direction=self.side, pad_id=self.pad_id, pad_type_id=0, pad_token=self.pad_token)

    def fill(self, values: Sequence[int], filler: int, target: int) -> list[int]:
        """The values with `filler` on the padding side, `target` long; a longer list is left as it is."""
        missing = [filler] * (target - len(values))
        return [*missing, *values] if self.side == "left" else [*values, *missing]


def as_tensors(columns: dict[str, Any], kind: str | None) -> dict[str, Any]:
    """Columns of lists as PyTorch ("pt") or NumPy ("np") arrays of int64, or as they are (None).

    Raises TokenizerError where the rows of a column differ in length.
    """
    if kind is None:
        return columns
    if kind not in ("pt", "np"):
        raise TokenizerError(f"return_tensors={kind!r} must be 'pt', 'np' or None")
    arrays = {name: _as_array(values, name) for name, values in columns.items()}
    if kind == "np":
        return arrays
    import torch  # not at the top: who only counts tokens does not wait for it

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _as_array(values: Any, name: str) -> npt.NDArray[np.int64]:
    rows = values if isinstance(values, list) else [values]
    lengths = sorted({len(row) for row in rows if isinstance(row, list)})
    if len(lengths) > 1:
        raise TokenizerError(
            f"{name}: rows of {lengths[0]} to {lengths[-1]} tokens make no tensor; pass padding=True, and"
            " truncation=True where there is a length limit"
        )
    return np.array(values, dtype=np.int64)
