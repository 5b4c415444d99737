"""What a caller may hand the tokenizer, as plain lists; and what exactly is wrong with a text that it refuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2model.errors import TokenizerError

Words = Sequence[str]
Text = str | Words  # one sequence: a string, or words where is_split_into_words
_LIST = (list, tuple)
_SURROGATE_REMEDY = "pair or drop it first: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"


@dataclass(frozen=True, slots=True)
class TextBatch:
    """One entry a row: the sequence, and where there are pairs the second one. `single`: the caller gave no list."""

    firsts: list[Text]
    seconds: list[Text] | None
    single: bool
    words: bool


def as_batch(text: Any, text_pair: Any, is_split_into_words: bool) -> TextBatch:
    """A single text, a list of them, pairs in two lists or as a list of tuples, in words or whole.

    Raises TokenizerError where the shape of `text` and `text_pair` is none of these; what is inside is looked at by
    `check_text` when the library refuses it.
    """
    if not isinstance(text, _LIST) or (is_split_into_words and not (text and isinstance(text[0], _LIST))):
        return _single(text, text_pair, is_split_into_words)
    if text_pair is None:
        firsts, seconds = _unzipped(text, is_split_into_words)
        return TextBatch(firsts, seconds, single=False, words=is_split_into_words)
    if not isinstance(text_pair, _LIST) or len(text_pair) != len(text):
        given = f"{len(text_pair)} entries" if isinstance(text_pair, _LIST) else type(text_pair).__name__
        raise TokenizerError(f"text is a list of {len(text)}, so text_pair must be one too, not {given}")
    return TextBatch(list(text), list(text_pair), single=False, words=is_split_into_words)


def _single(text: Any, text_pair: Any, words: bool) -> TextBatch:
    for name, value in (("text", text), ("text_pair", text_pair)):
        absent = value is None and name == "text_pair"
        if not absent and not isinstance(value, _LIST if words else str):
            wanted = "a list of words (is_split_into_words=True)" if words else "a string, or a list where text is one"
            raise TokenizerError(f"{name} must be {wanted}, not {type(value).__name__}")
    return TextBatch([text], None if text_pair is None else [text_pair], single=True, words=words)


def _unzipped(texts: Sequence[Any], words: bool) -> tuple[list[Text], list[Text] | None]:
    """Rows, or rows of two: a pair is a list of two strings, of two lists of words where the text is in words."""
    paired = [_is_pair(row, words) for row in texts]
    if not any(paired):
        return list(texts), None
    if not all(paired):
        at = paired.index(not paired[0])
        raise TokenizerError(f"text[0] and text[{at}] differ: either every entry of text is a pair, or none")
    return [row[0] for row in texts], [row[1] for row in texts]


def _is_pair(row: Any, words: bool) -> bool:
    part = _LIST if words else str
    return isinstance(row, _LIST) and len(row) == 2 and all(isinstance(side, part) for side in row)


def all_strings(texts: Sequence[Any]) -> bool:
    """Whether each entry is a string; answers from the set of types, which costs nothing beside tokenizing."""
    return all(issubclass(kind, str) for kind in set(map(type, texts)))


def check_batch(batch: TextBatch) -> None:
    """Raise TokenizerError for the first text of the batch that cannot be encoded."""
    for name, texts in (("text", batch.firsts), ("text_pair", batch.seconds or [])):
        for index, text in enumerate(texts):
            check_text(text, name if batch.single else f"{name}[{index}]", batch.words)


def check_text(text: Any, place: str, words: bool = False) -> None:
    """Raise TokenizerError, naming the place, unless `text` is a string (or a list of them) of Unicode characters."""
    if words:
        if not isinstance(text, _LIST):
            raise TokenizerError(f"{place} must be a list of words, not {type(text).__name__}: {text!r:.80}")
        for index, word in enumerate(text):
            check_text(word, f"{place}[{index}]")
        return
    if not isinstance(text, str):
        raise TokenizerError(f"{place} must be a string, not {type(text).__name__}: {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TokenizerError(
            f"{place} has a lone surrogate, U+{code:04X}, at character {error.start}, which is no Unicode character;"
            f" {_SURROGATE_REMEDY}"
        ) from error
