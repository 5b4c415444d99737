"""Stop strings against a search in the bytes and against transformers; the other ends of a row."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2model.errors import InputError
from gpt2model.generation.context import NO_TOKEN, Context
from gpt2model.generation.stopping import (
    StopStrings,
    cut_at_stop,
    deadline,
    ended_by_length,
    ended_by_token,
    token_bytes,
)
from gpt2model.tokenizer import GPT2Tokenizer

TINY = Path(__file__).resolve().parents[3] / "samples" / "gpt2-tiny"
# Ids without bytes: one that the list says so of, and one past its end.
SPLITTING, UNKNOWN = 6, 9
TOKENS: list[bytes | None] = [b"a", b"b", b"ab", b"ba", b"aab", "é".encode()[1:], None, "é".encode()[:1], b"abab"]


@cache
def tiny() -> GPT2Tokenizer:
    return GPT2Tokenizer.from_pretrained(TINY)


@cache
def tiny_bytes() -> list[bytes | None]:
    return token_bytes(tiny(), skip_special_tokens=False)


def spelled(ids: Sequence[int]) -> bytes:
    """The bytes of the toy tokens after the last one without any."""
    text = b""
    for index in ids:
        token = TOKENS[index] if 0 <= index < len(TOKENS) else None
        text = b"" if token is None else text + token
    return text


def ends_in_last(ids: Sequence[int], patterns: Sequence[bytes]) -> bool:
    """Whether the text has a pattern that the last token is part of."""
    last = TOKENS[ids[-1]] if ids[-1] < len(TOKENS) else None
    if last is None:
        return False
    text = spelled(ids)
    before = len(text) - len(last)
    return any(text.find(pattern, max(0, before - len(pattern) + 1)) >= 0 for pattern in patterns)


def walked(stop: StopStrings, states: Tensor, ids: Tensor) -> list[list[bool]]:
    """Whether each row has a string after each of its tokens [B, L]."""
    found = []
    for tokens in ids.unbind(dim=1):
        states = stop.step(states, tokens)
        found.append(stop.found(states).tolist())
    return [list(row) for row in zip(*found, strict=True)]


toy_ids = st.lists(st.integers(0, UNKNOWN), max_size=10)
toy_strings = st.lists(st.text("abé", min_size=1, max_size=6), max_size=4)


@settings(deadline=None)
@given(prompt=toy_ids, new=toy_ids.filter(bool), strings=toy_strings)
def test_a_string_is_found_with_the_token_that_completes_it(
    prompt: list[int], new: list[int], strings: list[str]
) -> None:
    stop = StopStrings(TOKENS, strings)
    begun = stop.after(stop.start(1), torch.tensor([prompt], dtype=torch.int64))
    assert not stop.found(begun).any()
    patterns = [text.encode() for text in strings]
    completed = [ends_in_last(prompt + new[: count + 1], patterns) for count in range(len(new))]
    expected = [any(completed[: count + 1]) for count in range(len(new))]
    assert walked(stop, begun, torch.tensor([new])) == [expected]


@settings(deadline=None)
@given(rows=st.lists(toy_ids, min_size=1, max_size=4), holes=st.lists(st.integers(0, 9)), strings=toy_strings)
def test_what_is_no_token_leaves_a_state_alone(rows: list[list[int]], holes: list[int], strings: list[str]) -> None:
    stop = StopStrings(TOKENS, strings)
    holed = [list(row) for row in rows]
    for row in holed:
        for hole in holes:
            row.insert(min(hole, len(row)), NO_TOKEN)
    longest = max(map(len, holed))
    ids = torch.tensor([row + [NO_TOKEN] * (longest - len(row)) for row in holed], dtype=torch.int64)
    ids = ids.reshape(len(rows), longest)
    alone = [stop.after(stop.start(1), torch.tensor([row], dtype=torch.int64)) for row in rows]
    assert stop.after(stop.start(len(rows)), ids).tolist() == torch.cat(alone).tolist()
    if longest:
        found = [walked(stop, stop.start(1), torch.tensor([row]))[0][-1] if row else False for row in rows]
        assert [row[-1] for row in walked(stop, stop.start(len(rows)), ids)] == found


@settings(deadline=None)
@given(first=toy_ids, second=toy_ids, strings=toy_strings)
def test_text_may_be_read_in_parts(first: list[int], second: list[int], strings: list[str]) -> None:
    stop = StopStrings(TOKENS, strings)
    parts = [torch.tensor([part], dtype=torch.int64) for part in (first, second)]
    in_parts = stop.after(stop.after(stop.start(1), parts[0]), parts[1])
    assert in_parts.equal(stop.after(stop.start(1), torch.cat(parts, dim=1)))


def test_what_was_found_stays_found() -> None:
    stop = StopStrings(TOKENS, ["ba"])
    states = stop.step(stop.step(stop.start(2), torch.tensor([1, 1])), torch.tensor([0, 1]))
    assert stop.found(states).tolist() == [True, False]
    for tokens in ([0, 0], [SPLITTING, 2], [NO_TOKEN, NO_TOKEN]):
        states = stop.step(states, torch.tensor(tokens))
    assert stop.found(states).tolist() == [True, True]
    assert stop.found(stop.after(states, torch.tensor([[SPLITTING, 1], [1, 1]]))).tolist() == [True, True]


@pytest.mark.parametrize("breaking", [SPLITTING, UNKNOWN, UNKNOWN + 1000])
def test_a_token_without_bytes_breaks_a_string_in_two(breaking: int) -> None:
    stop = StopStrings(TOKENS, ["bb", "baba"])
    assert walked(stop, stop.start(1), torch.tensor([[1, breaking, 1, 0, breaking, 3, 1, 1]])) == [[False] * 7 + [True]]


def test_of_strings_that_begin_alike_the_shorter_and_the_longer_are_found() -> None:
    stop = StopStrings(TOKENS, ["aba", "ab"])
    # The prompt holds the shorter, of which the longer one is what is left to find.
    states = stop.after(stop.start(2), torch.tensor([[0, 1], [0, 1]]))
    assert stop.found(stop.step(states, torch.tensor([0, 1]))).tolist() == [True, False]


def test_the_state_of_a_beam_goes_where_the_beam_goes() -> None:
    stop = StopStrings(TOKENS, ["bb"])
    states = stop.step(stop.start(2), torch.tensor([0, 1]))[torch.tensor([1, 1])]
    assert stop.found(stop.step(states, torch.tensor([1, 0]))).tolist() == [True, False]


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2047), min_size=1, max_size=12),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 7)), min_size=1, max_size=3),
)
def test_a_string_stops_where_it_stops_transformers(ids: list[int], cuts: list[tuple[int, int]]) -> None:
    text = tiny().decode(ids)
    strings = sorted({piece for start, size in cuts if (piece := text[start % len(text) :][:size])})
    theirs = transformers.StopStringCriteria(their_tokenizer(), strings)
    stop = StopStrings(tiny_bytes(), strings)
    for length in range(1, len(ids) + 1):
        row = torch.tensor([ids[:length]])
        states = stop.step(stop.after(stop.start(1), row[:, :-1]), row[:, -1])
        assert stop.found(states).tolist() == theirs(row, None).tolist()


@cache
def their_tokenizer() -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(TINY)


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=30), place=st.integers(0, 29), size=st.integers(1, 5))
def test_a_string_of_any_characters_is_found_in_the_tokens_of_its_text(text: str, place: int, size: int) -> None:
    wanted = text[place % len(text) :][:size]
    ids = torch.tensor([tiny().encode(text)])
    stop = StopStrings(tiny_bytes(), [wanted])
    found = walked(stop, stop.start(1), ids)[0]
    assert found[-1]
    for length in range(ids.shape[1]):
        read = b"".join(tiny_bytes()[index] or b"" for index in ids[0, : length + 1].tolist())
        assert found[length] == (wanted.encode() in read)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30))
def test_the_bytes_of_tokens_are_those_of_the_text(text: str) -> None:
    assert b"".join(tiny_bytes()[index] or b"" for index in tiny().encode(text)) == text.encode()


def test_special_tokens_have_no_bytes_unless_they_are_not_skipped() -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(TINY)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|end|>"]})
    tokenizer.add_tokens(["new word"])
    held, all_held = token_bytes(tokenizer), token_bytes(tokenizer, skip_special_tokens=False)
    ids = [tokenizer.eos_token_id, *(tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "new word"))]
    assert len(held) == len(all_held) == len(tokenizer)
    assert [held[index] for index in ids] == [None, None, b"new word"]
    assert [all_held[index] for index in ids] == [b"<|endoftext|>", b"<|end|>", b"new word"]
    assert held.count(None) == 2
    for tokens, found in ((held, False), (all_held, True)):
        stop = StopStrings(tokens, ["<|end|>"])
        assert stop.found(stop.step(stop.start(1), torch.tensor(ids[1:2]))).tolist() == [found]


def test_no_step_waits_for_the_device() -> None:
    stop = StopStrings(TOKENS, ["ab", "b"])
    states = stop.after(stop.start(2, "meta"), torch.zeros(2, 5, dtype=torch.int64, device="meta"))
    states = stop.step(states, torch.zeros(2, dtype=torch.int64, device="meta"))
    assert (stop.found(states).shape, states.dtype) == ((2,), torch.int64)


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(InputError, match="empty string is found everywhere"):
        StopStrings(TOKENS, ["a", ""])


def test_a_lone_surrogate_is_looked_for_in_vain() -> None:
    stop = StopStrings(TOKENS, ["\ud800", "b"])
    assert walked(stop, stop.start(1), torch.tensor([[0, 1]])) == [[False, True]]


@pytest.mark.parametrize(
    ("text", "strings", "expected"),
    [
        ("one two", [], "one two"),
        ("one two", ["three"], "one two"),
        ("one two", ["two", "e"], "on"),
        ("one two", ["ne t", "one"], ""),
        ("", ["a"], ""),
    ],
)
def test_a_text_is_cut_before_the_first_of_the_strings(text: str, strings: list[str], expected: str) -> None:
    assert cut_at_stop(text, strings) == expected


def test_a_row_ends_by_its_last_token_or_its_length() -> None:
    ids = torch.tensor([[1, 2, 3], [3, 1, NO_TOKEN], [NO_TOKEN, NO_TOKEN, NO_TOKEN]])
    lengths = torch.tensor([3, 2, 0])
    context = Context(ids, lengths, torch.tensor([1, 1, 0]), torch.tensor([4, 2, 1]))
    assert ended_by_token(context, [3]).tolist() == [True, False, False]
    assert ended_by_token(context, [0, 1, 3]).tolist() == [True, True, False]
    assert ended_by_token(context, []).tolist() == [False, False, False]
    assert ended_by_length(context).tolist() == [False, True, False]


@pytest.mark.parametrize("eos", [[0], [1, 2]])
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=3))
def test_rows_end_as_in_transformers(eos: list[int], rows: list[list[int]]) -> None:
    ids = torch.tensor(rows)
    size = torch.full((len(rows),), 3)
    for most in (2, 3, 4):
        context = Context(ids, size, size, torch.full((len(rows),), most))
        by_length = transformers.MaxLengthCriteria(most)(ids, None)
        assert ended_by_length(context).equal(by_length)
    assert ended_by_token(context, eos).equal(transformers.EosTokenCriteria(eos)(ids, None))


def test_time_is_up_after_more_than_its_seconds() -> None:
    now = [100.0]
    over = deadline(2.5, lambda: now[0])
    never = deadline(None, lambda: now[0])
    said = []
    for now[0] in (100.0, 102.5, 102.6, 1e9):
        said.append((over(), never()))
    assert said == [(False, False), (False, False), (True, False), (True, False)]
