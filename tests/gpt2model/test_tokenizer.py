"""GPT2Tokenizer against transformers' own, on real text, on any text, and on the texts nobody means to send."""

import copy
import inspect
import itertools
import json
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from gpt2model.encoding import BatchEncoding
from gpt2model.errors import TokenizerError
from gpt2model.tokenizer import GPT2Tokenizer

HARD_TEXTS = {
    "nothing": "",
    "a space": " ",
    "NUL": "a\x00b\x00",
    "whitespace runs": "a  b   c\t\t d\n\n\n e \r\n \u3000\u00a0 f   ",
    "emoji with joiners": "👩‍👩‍👧‍👦 🏳️‍🌈🇩🇪 👍🏽",
    "combining marks": "e\u0301 n\u0303 Z͑ͫ̓a̸̛l̷g̈o ạ̀",
    "right to left": "שלום \u202eabc\u202c مرحبا",
    "no script": "\U0001f9ff\U000e0041\ufeff\ufffd\U0010ffff",
    "special token inside": "end<|endoftext|> next<|endoftext|><|endoftext|>",
    "nearly special": "<|endoftext|<|endoftext |>",
    "code": "def f(x):\n    return {'a': x**2}  # it's\n",
    "contractions": "I'm you're we've they'll he'd it's DON'T",
    "digits": "3.14159 1,000,000 ½ ٣ Ⅷ",
}
PIECES = ["<|endoftext|>", "\x00", "  ", "\n\n", " the", "'s", "👩‍👩‍👧", "e\u0301"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS = st.lists(ANY_TEXT | st.sampled_from(PIECES), max_size=6).map("".join)
QUICK = settings(max_examples=60, deadline=None)

Maker = Callable[..., Any]


@pytest.fixture(scope="session")
def gpt2_folder(shared_data: Path) -> Path:
    return shared_data / "gpt2-tokenizer"


@pytest.fixture(scope="session")
def oracle_class() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own imports warn of what they will change
        from transformers import GPT2Tokenizer as Oracle
    return Oracle


@pytest.fixture(scope="session")
def both(gpt2_folder: Path, oracle_class: Any) -> Maker:
    """Ours and transformers' tokenizer with the same options, made once for each set of options."""
    made: dict[str, tuple[GPT2Tokenizer, Any]] = {}

    def make(**options: Any) -> tuple[GPT2Tokenizer, Any]:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = tuple(kind.from_pretrained(gpt2_folder, **options) for kind in (GPT2Tokenizer, oracle_class))
        return made[key]

    return make


@pytest.fixture(scope="session")
def ours(both: Maker) -> GPT2Tokenizer:
    return both()[0]


@pytest.fixture(scope="session")
def wikitext(shared_data: Path) -> list[str]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(shared_data / "wikitext2_test.parquet")["text"].to_pylist()


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A vocabulary of all bytes and two merges: enough where the words do not matter."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*letters, "ab", "abc", "<|endoftext|>"])}
    return {"vocab": vocab, "merges": [("a", "b"), ("ab", "c")]}


def assert_same(made: BatchEncoding, wanted: Any) -> None:
    assert dict(made) == dict(wanted)
    for row, theirs in zip(made.encodings, wanted.encodings, strict=True):
        assert row.tokens == theirs.tokens
        assert row.word_ids == theirs.word_ids
        assert row.sequence_ids == theirs.sequence_ids
        assert row.offsets == theirs.offsets


EVERYTHING = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_length": True,
}


# Text to ids and back


def test_wikitext_has_the_known_number_of_tokens(ours: GPT2Tokenizer, wikitext: list[str]) -> None:
    assert len(ours.encode_ragged(["\n\n".join(wikitext)]).ids) == 287_644


def test_wikitext_rows_equal_the_oracle(both: Maker, wikitext: list[str]) -> None:
    ours, oracle = both()
    made, wanted = ours(wikitext, return_offsets_mapping=True), oracle(wikitext, return_offsets_mapping=True)
    assert dict(made) == dict(wanted)
    assert ours.batch_decode(made.input_ids) == wikitext
    assert [row.tolist() for row in ours.encode_ragged(wikitext)] == made.input_ids


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}, {"add_bos_token": True}], ids=str)
def test_hard_texts_equal_the_oracle(both: Maker, text: str, options: dict[str, Any]) -> None:
    ours, oracle = both(**options)
    assert_same(ours(text, **EVERYTHING), oracle(text, **EVERYTHING))
    ids = oracle.encode(text)
    assert ours.encode(text) == ids
    assert ours.tokenize(text) == oracle.tokenize(text)
    for skip in (False, True):
        assert ours.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)
        assert ours.convert_ids_to_tokens(ids, skip) == oracle.convert_ids_to_tokens(ids, skip)


@QUICK
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_equals_the_oracle_and_comes_back(both: Maker, texts: list[str]) -> None:
    ours, oracle = both()
    made = ours(texts, **EVERYTHING)
    assert_same(made, oracle(texts, **EVERYTHING))
    ragged = ours.encode_ragged(texts)
    assert [row.tolist() for row in ragged] == made.input_ids == [ours.encode(text) for text in texts]
    assert ragged.lengths.tolist() == [len(row) for row in made.input_ids]
    assert ours.decode(made.input_ids) == texts


@QUICK
@given(ids=st.lists(st.integers(0, 50256), max_size=30), skip=st.booleans())
def test_any_ids_decode_as_the_oracle_decodes_them(both: Maker, ids: list[int], skip: bool) -> None:
    ours, oracle = both()
    assert ours.decode(ids, skip_special_tokens=skip) == oracle.decode(ids, skip_special_tokens=skip)
    tokens = ours.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_string(tokens) == oracle.convert_tokens_to_string(tokens)
    assert ours.convert_tokens_to_ids(tokens) == ids


@QUICK
@given(ids=st.lists(st.integers(0, 255), max_size=12))
def test_bytes_that_are_no_utf8_become_what_errors_says(both: Maker, ids: list[int]) -> None:
    ours, _ = both()
    raw = b"".join(bytes_of_letter(token) for token in ours.convert_ids_to_tokens(ids))
    assert ours.decode(ids) == raw.decode(errors="replace")
    for errors in ("ignore", "backslashreplace"):
        assert both(errors=errors)[0].decode(ids) == raw.decode(errors=errors)


def bytes_of_letter(letter: str) -> bytes:
    """The byte of a single-byte token, found by asking the library's decoder about each byte's place."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    return bytes([order[[*map(chr, printable), *map(chr, range(256, 324))].index(letter)]])


def test_strict_errors_name_the_byte(both: Maker) -> None:
    ours, _ = both(errors="strict")
    with pytest.raises(TokenizerError, match=r"at byte 1 of 2.*errors='replace'"):
        ours.decode([64, 255])


def test_added_tokens_decode_under_any_errors_as_under_replace(both: Maker) -> None:
    text = "a<|endoftext|> é<|endoftext|>"
    for errors, skip in itertools.product(("replace", "ignore"), (False, True)):
        ours, oracle = both(errors=errors)
        assert ours.decode(ours.encode(text), skip) == oracle.decode(oracle.encode(text), skip)


@pytest.mark.parametrize(
    "ids", [5, [5], [[5, 6], [7]], np.array([5, 6]), torch.tensor([[5, 6]]), [torch.tensor(5)], {"input_ids": [5, 6]}]
)
def test_decode_takes_what_the_oracle_takes(both: Maker, ids: Any) -> None:
    ours, oracle = both()
    assert ours.decode(ids) == oracle.decode(ids)


@pytest.mark.parametrize("ids", [[5, -100], [2**40], [1.5], ["a"], [None]], ids=str)
def test_what_is_no_id_is_refused(ours: GPT2Tokenizer, ids: list[Any]) -> None:
    with pytest.raises(TokenizerError, match=r"ids\[\d\] is .*integers from 0"):
        ours.decode(ids)


def test_an_id_without_a_token_decodes_to_nothing(both: Maker) -> None:
    ours, oracle = both()
    assert ours.decode([15496, 60000]) == oracle.decode([15496, 60000]) == "Hello"
    assert ours.convert_ids_to_tokens(60000) is None


def test_spaces_are_cleaned_only_where_both_options_ask(both: Maker) -> None:
    flag = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    for options in ({}, {"clean_up_tokenization_spaces": True}, {flag: True}):
        ours, oracle = both(**options)
        ids = ours.encode("It is n't , he 's ' so ' ?")
        for clean in (None, False, True):
            given = {"clean_up_tokenization_spaces": clean}
            assert ours.decode(ids, **given) == oracle.decode(ids, **given)


@pytest.mark.parametrize("text", ["a" * 1_000_000, "qzxjk" * 200_000, " " * 1_000_000, "é" * 500_000], ids=len)
def test_a_megabyte_without_a_space_goes_there_and_back(both: Maker, text: str) -> None:
    ours, oracle = both()
    ids = ours.encode_ragged([text]).ids.tolist()
    assert ids == oracle.encode(text)
    assert ours.decode(ids) == text


# Rows: pairs, words, cutting and filling

FIRSTS = ["Hello world, this is a long row of words", "short", "", "unbelievably tokenizable 👩‍👧 emoji<|endoftext|>"]
SECONDS = ["the second", "a second text that is longer than its first one", "x", ""]


def shapes(pairs: bool, words: bool) -> tuple[Any, ...]:
    firsts, seconds = ([text.split() for text in texts] if words else texts for texts in (FIRSTS, SECONDS))
    return (firsts, seconds) if pairs else (firsts,)


@pytest.mark.parametrize("words", [False, True], ids=["whole", "words"])
@pytest.mark.parametrize("pairs", [False, True], ids=["alone", "pairs"])
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("space", [False, True], ids=["", "prefix"])
def test_cut_and_filled_rows_equal_the_oracle(both: Maker, words: bool, pairs: bool, bos: bool, space: bool) -> None:
    given = shapes(pairs, words)
    for sides in itertools.product(("left", "right"), repeat=2):
        ours, oracle = both(add_bos_token=bos, add_prefix_space=space, pad_token="<|pad|>")
        ours.truncation_side = oracle.truncation_side = sides[0]
        ours.padding_side = oracle.padding_side = sides[1]
        grid = itertools.product(
            (True, False, "max_length"), (True, "only_first", "only_second", False), (4, 9, 30), (0, 1)
        )
        for padding, truncation, max_length, stride in grid:
            options = {"padding": padding, "truncation": truncation, "max_length": max_length, "stride": stride}
            options |= {"is_split_into_words": words, "return_overflowing_tokens": stride == 1, **EVERYTHING}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # both say that max_length is ignored
                same_answer_or_both_refuse(ours, oracle, given, options)


def same_answer_or_both_refuse(ours: GPT2Tokenizer, oracle: Any, given: tuple[Any, ...], options: Any) -> None:
    try:
        made = ours(*given, **options)
    except TokenizerError:
        with pytest.raises(BaseException, match=r"(?i)truncation|stride"):  # the library's panics are BaseExceptions
            oracle(*given, **options)
        return
    assert_same(made, oracle(*given, **options))


@QUICK
@given(
    first=st.integers(0, 12),
    second=st.integers(0, 12),
    limit=st.integers(0, 14),
    stride=st.integers(0, 3),
    bos=st.booleans(),
)
def test_two_sequences_share_the_room_as_in_the_oracle(
    both: Maker, first: int, second: int, limit: int, stride: int, bos: bool
) -> None:
    assume(stride == 0 or stride < limit)
    ours, oracle = both(add_bos_token=bos)
    given = (["a " * first], ["b " * second])
    options = {"truncation": True, "max_length": limit + 2 * bos, "stride": stride, "return_overflowing_tokens": True}
    same_answer_or_both_refuse(ours, oracle, given, options)


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize(
    "given", [("one text",), (["a text", "another longer text"],), ("a", "pair"), ([""],)], ids=str
)
def test_tensors_equal_the_oracle(both: Maker, given: tuple[Any, ...], kind: str) -> None:
    ours, oracle = both(pad_token="<|endoftext|>")
    made = ours(*given, padding=True, pad_to_multiple_of=4, return_tensors=kind, return_offsets_mapping=True)
    wanted = oracle(*given, padding=True, pad_to_multiple_of=4, return_tensors=kind, return_offsets_mapping=True)
    assert made.keys() == wanted.keys()
    for name in made:
        assert made[name].shape == wanted[name].shape
        assert made[name].tolist() == wanted[name].tolist()
    assert made.input_ids.dtype == (torch.int64 if kind == "pt" else np.int64)


@pytest.mark.parametrize(
    "given",
    ["a", ["a"], ["a", "b c"], ("a", "b"), [("a", "b"), ("c", "d e")], [["a", "b"], ["c", "d"]], [""]],
    ids=str,
)
def test_text_may_have_every_shape_that_the_oracle_takes(both: Maker, given: Any) -> None:
    ours, oracle = both(add_bos_token=True)
    assert_same(ours(given), oracle(given))


@pytest.mark.parametrize(
    "given", [["a", "b c"], [], [["a"], ["b", "c"]], [[]], [(["a"], ["b", "c"]), (["d"], ["e"])]], ids=str
)
@pytest.mark.parametrize("space", [False, True])
def test_words_may_have_every_shape_that_the_oracle_takes(both: Maker, given: Any, space: bool) -> None:
    ours, oracle = both(add_prefix_space=space)
    assert_same(ours(given, is_split_into_words=True), oracle(given, is_split_into_words=True))


def test_words_characters_and_tokens_find_each_other_as_in_the_oracle(both: Maker) -> None:
    ours, oracle = both(add_prefix_space=True, add_bos_token=True)
    given = ([["Hello", "unbelievable"], ["x"]], [["second", "one"], ["tokenizable", "y"]])
    made, wanted = ours(*given, is_split_into_words=True), oracle(*given, is_split_into_words=True)
    assert made.word_ids(1) == wanted.word_ids(1)
    assert made.sequence_ids(1) == wanted.sequence_ids(1)
    assert made.tokens(1) == wanted.tokens(1)
    for row, at in itertools.product(range(2), range(4)):
        for name in ("token_to_sequence", "token_to_word", "token_to_chars"):
            assert getattr(made, name)(row, at) == getattr(wanted, name)(row, at), name
        for name, sequence in itertools.product(("word_to_tokens", "char_to_token", "char_to_word"), range(2)):
            assert getattr(made, name)(row, at, sequence) == getattr(wanted, name)(row, at, sequence), name
    assert made.word_to_chars(0, 1) == wanted.word_to_chars(0, 1)
    assert made.token_to_word(1) == wanted.token_to_word(1)


def test_rows_that_differ_in_length_make_no_tensor(ours: GPT2Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"input_ids: rows of 1 to 3 tokens.*padding=True"):
        ours(["a", "a b c"], return_tensors="pt")


def test_padding_without_a_pad_token_says_how_to_get_one(ours: GPT2Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.pad_token = tokenizer.eos_token"):
        ours(["a", "b c"], padding=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"padding": "longst"}, "padding='longst' must be one of 'longest'"),
        ({"truncation": "first"}, "truncation='first' must be one of"),
        ({"padding": True, "padding_side": "top"}, "padding_side='top' must be one of"),
        ({"return_tensors": "tf"}, "return_tensors='tf'"),
        ({"truncation": True, "max_length": -1}, "max_length=-1"),
        ({"truncation": True, "max_length": 2, "stride": 2}, "stride=2 must be less than max_length=2"),
        (
            {"truncation": True, "max_length": 3, "stride": 2, "text_pair": "x y"},
            "less than the 2 tokens that max_length=3",
        ),
        ({"truncation": "only_first", "max_length": 2, "text_pair": "x y z"}, "to max_length=2: use 'longest_first'"),
        ({"truncation": "only_second", "max_length": 2}, "the text has no second sequence"),
        ({"padding": True, "truncation": True, "max_length": 3, "pad_to_multiple_of": 2}, "must be a multiple of"),
    ],
)
def test_impossible_options_are_refused(both: Maker, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        both(pad_token="<|pad|>")[0]("one two three", **given)


def test_unknown_keywords_are_errors(ours: GPT2Tokenizer, gpt2_folder: Path) -> None:
    with pytest.raises(TypeError, match="paddings"):
        ours("a", paddings=True)
    with pytest.raises(TokenizerError, match="did you mean 'add_prefix_space'"):
        GPT2Tokenizer.from_pretrained(gpt2_folder, add_prefix_spaces=True)


@pytest.mark.parametrize("length", [None, 2, 3, 16])
def test_model_max_length_is_the_length_where_none_is_given(both: Maker, length: int | None) -> None:
    ours, oracle = both(model_max_length=length, pad_token="<|pad|>")
    for options in ({"truncation": True}, {"padding": "max_length"}, {"padding": "max_length", "truncation": True}):
        assert_same(ours("one two three", **options), oracle("one two three", **options))
    assert ours.model_max_length == oracle.model_max_length


def test_a_max_length_alone_truncates(both: Maker) -> None:
    ours, oracle = both()
    assert_same(ours("one two three", max_length=2), oracle("one two three", max_length=2))
    assert len(ours("one two three", max_length=2, truncation=False).input_ids) == 3


def test_an_empty_batch_has_no_rows(ours: GPT2Tokenizer) -> None:
    assert dict(ours([])) == {"input_ids": [], "attention_mask": []}
    assert len(ours.encode_ragged([])) == 0
    assert ours.batch_decode([]) == []


ROWS = {"input_ids": [[1, 2, 3], [4]], "attention_mask": [[1, 1, 1], [1]], "token_type_ids": [[0, 0, 1], [0]]}


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        {"input_ids": [[1, 2], [3]]},
        {"input_ids": [1, 2]},
        {"input_ids": [[1, 2, 3]], "labels": [7]},
        [{"input_ids": [1]}, {"input_ids": [1, 2]}],
        [{"input_ids": torch.tensor([1])}, {"input_ids": torch.tensor([1, 2])}],
        {"input_ids": np.array([[1, 2]])},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pad_equals_the_oracle_and_leaves_its_input(both: Maker, given: Any, side: str) -> None:
    ours, oracle = both(pad_token="<|pad|>")
    before = copy.deepcopy(given)
    for options in ({}, {"pad_to_multiple_of": 4}, {"padding": "max_length", "max_length": 6}, {"padding": False}):
        if options.get("padding") is False and isinstance(given, list):
            continue  # ragged rows, where tensors were given
        made = ours.pad(given, padding_side=side, **options)
        assert str(given) == str(before)
        wanted = oracle.pad(copy.deepcopy(given), padding_side=side, **options)
        assert {name: as_list(value) for name, value in made.items()} == {n: as_list(v) for n, v in wanted.items()}
        assert type(made.input_ids) is type(wanted["input_ids"])


def as_list(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


# Texts that cannot be encoded


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ok \ud83d then", r"^text has a lone surrogate, U\+D83D, at character 3.*utf-16"),
        (["ok", "a\udc00"], r"^text\[1\] has a lone surrogate, U\+DC00, at character 1"),
        (["ok", None], r"^text\[1\] must be a string, not NoneType"),
        (["ok", 3.5], r"^text\[1\] must be a string, not float: 3.5"),
        ([b"ok"], r"^text\[0\] must be a string, not bytes"),
        (None, "^text must be a string, or a list.* not NoneType"),
        (7, "^text must be a string, or a list.* not int"),
        ([("a", "b"), "c"], r"text\[0\] and text\[1\] differ"),
        ([["a", "b", "c"]], r"^text\[0\] must be a string, not list"),
    ],
)
def test_a_text_that_cannot_be_encoded_is_named(ours: GPT2Tokenizer, given: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours(given)


def test_the_remedy_for_lone_surrogates_works(ours: GPT2Tokenizer) -> None:
    mended = "a\ud83d\ude00 b\udc00".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert ours.decode(ours.encode(mended)) == "a😀 b\ufffd"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["a"], "b"), "text_pair must be one too, not str"),
        ((["a"], ["b", "c"]), "text is a list of 1, so text_pair must be one too, not 2 entries"),
        (("a", ["b"]), "^text_pair must be a string, or .* not list"),
        ((["a"], ["\ud800"]), r"text_pair\[0\] has a lone surrogate"),
    ],
)
def test_a_pair_that_does_not_match_is_named(ours: GPT2Tokenizer, given: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours(*given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a string", "a list of words"),
        ([["a"], "b"], r"text\[1\] must be a list of words, not str"),
        ([["a", "\ud800"]], r"text\[0\]\[1\] has a lone surrogate"),
        (["a", 1], r"text\[1\] must be a string, not int"),
    ],
)
def test_words_that_cannot_be_encoded_are_named(ours: GPT2Tokenizer, given: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours(given, is_split_into_words=True)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
def test_encode_ragged_adds_the_tokens_of_the_template_and_tells_characters(
    gpt2_folder: Path, bos: bool, eos: bool
) -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(gpt2_folder)
    tokenizer.add_bos_token, tokenizer.add_eos_token = bos, eos
    texts = list(HARD_TEXTS.values())
    ragged = tokenizer.encode_ragged(texts, add_special_tokens=True, return_chars=True)
    expected = tokenizer(texts, return_offsets_mapping=True)
    assert [row.tolist() for row in ragged] == expected["input_ids"]
    assert ragged.chars is not None
    flat = [list(span) for spans in expected["offset_mapping"] for span in spans]
    assert ragged.chars.tolist() == flat


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("one string", "not one string"),
        (["a", "\ud800"], r"text\[1\] has a lone surrogate"),
        (["a", None], r"text\[1\] must be a string"),
        (["a", ("b", "c")], r"text\[1\] must be a string, not tuple"),
    ],
)
def test_encode_ragged_names_the_text_too(ours: GPT2Tokenizer, given: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        ours.encode_ragged(given)


# Special and added tokens


def test_special_tokens_are_those_of_the_oracle(both: Maker) -> None:
    for options in ({}, {"pad_token": "<|pad|>", "extra_special_tokens": ["<a>", "<b>"], "sep_token": "<|endoftext|>"}):
        ours, oracle = both(**options)
        assert len(ours) == len(oracle)
        assert ours.vocab_size == oracle.vocab_size
        assert ours.get_vocab() == oracle.get_vocab()
        for name in ("special_tokens_map", "all_special_tokens", "all_special_ids", "extra_special_tokens"):
            assert getattr(ours, name) == getattr(oracle, name)
        for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
            assert getattr(ours, f"{name}_token") == getattr(oracle, f"{name}_token")
            assert getattr(ours, f"{name}_token_id") == getattr(oracle, f"{name}_token_id")


def test_special_tokens_in_a_text_can_be_read_as_plain_text(both: Maker) -> None:
    text = "a<|endoftext|>b"
    ours, oracle = both()
    plain = ours(text, split_special_tokens=True)
    assert_same(plain, oracle(text, split_special_tokens=True))
    assert 50256 not in plain.input_ids
    assert ours.encode_ragged([text], split_special_tokens=True)[0].tolist() == plain.input_ids
    assert 50256 in ours.encode(text), "the choice of one call is not the next one's"
    assert both(split_special_tokens=True)[0].encode(text) == plain.input_ids


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}])
@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_equal_the_oracle(gpt2_folder: Path, oracle_class: Any, flags: Any, special: bool) -> None:
    tokens = [AddedToken("<new>", special=special, **flags), "plain word"]
    texts = ["a <new> b<new>c  <new>", "plain words plain word", "<new><new>plain word"]
    ours, oracle = (kind.from_pretrained(gpt2_folder) for kind in (GPT2Tokenizer, oracle_class))
    for kind in (ours, oracle):
        kind.encode("warm", split_special_tokens=True)
        assert kind.add_tokens(tokens, special_tokens=special) == 2
    assert_same(ours(texts), oracle(texts))
    assert_same(ours(texts, split_special_tokens=True), oracle(texts, split_special_tokens=True))
    assert len(ours) == len(oracle) == 50259
    ids = ours(texts).input_ids
    for skip in (False, True):
        assert ours.batch_decode(ids, skip) == oracle.batch_decode(ids, skip)
    assert ours.get_added_vocab() == oracle.get_added_vocab()


def test_add_special_tokens_names_and_counts_as_the_oracle(gpt2_folder: Path, oracle_class: Any) -> None:
    ours, oracle = (kind.from_pretrained(gpt2_folder) for kind in (GPT2Tokenizer, oracle_class))
    for tokens in (
        {"pad_token": "<|pad|>", "sep_token": "<|endoftext|>"},
        {"extra_special_tokens": ["<x>", "<y>"]},
        {"extra_special_tokens": ["<z>"]},
        {"pad_token": "<|pad|>", "cls_token": AddedToken("<cls>", lstrip=True)},
    ):
        assert ours.add_special_tokens(tokens) == oracle.add_special_tokens(tokens)
        assert ours.special_tokens_map == oracle.special_tokens_map
        assert ours.all_special_ids == oracle.all_special_ids
    kept = {"extra_special_tokens": ["<z>", "<w>"]}
    assert ours.add_special_tokens(kept, False) == oracle.add_special_tokens(kept, False)
    assert ours.extra_special_tokens == oracle.extra_special_tokens
    assert_same(ours("a  <cls> <z><w><pad>"), oracle("a  <cls> <z><w><pad>"))


def test_a_named_token_must_be_in_the_vocabulary(tiny: dict[str, Any]) -> None:
    ours = GPT2Tokenizer(**tiny)
    ours.pad_token = ours.eos_token
    assert ours.pad_token_id == ours.eos_token_id == 258
    ours.pad_token_id = 3
    assert ours.pad_token == ours.convert_ids_to_tokens(3)
    ours.pad_token = None
    assert ours.pad_token_id is None
    with pytest.raises(TokenizerError, match=r"pad_token='<\|p\|>' is not in the vocabulary; add it by"):
        ours.pad_token = "<|p|>"
    with pytest.raises(TokenizerError, match=r"pad_token_id=999: no token has this id; there are 259"):
        ours.pad_token_id = 999


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pad": "x"}, "the name of a special token='pad' must be one of 'bos_token'"),
        ({"pad_token": ["x"]}, "pad_token takes one token"),
        ({"extra_special_tokens": "x"}, "takes a list of tokens"),
        ({"extra_special_tokens": [3]}, "a token is a string or an AddedToken"),
        ({"pad_token": ""}, "and not empty"),
    ],
)
def test_special_tokens_that_are_none_are_refused(tiny: dict[str, Any], given: Any, message: str) -> None:
    ours = GPT2Tokenizer(**tiny)
    with pytest.raises(TokenizerError, match=message):
        ours.add_special_tokens(given)
    assert len(ours) == 259


def test_bos_and_eos_can_be_switched_after_loading(tiny: dict[str, Any], oracle_class: Any) -> None:
    ours, oracle = GPT2Tokenizer(**tiny, add_bos_token=True), oracle_class(**tiny, add_bos_token=True)
    for kind in (ours, oracle):
        kind.add_eos_token = True
    assert_same(ours("ab", "c", **EVERYTHING), oracle("ab", "c", **EVERYTHING))
    assert ours.num_special_tokens_to_add(True) == oracle.num_special_tokens_to_add(True) == 4
    for kind in (ours, oracle):
        kind.add_bos_token = False
    assert_same(ours("ab", "c", **EVERYTHING), oracle("ab", "c", **EVERYTHING))
    assert_same(ours("ab", "c", add_special_tokens=False), oracle("ab", "c", add_special_tokens=False))


def test_a_vocabulary_without_the_end_token_gets_it(tiny: dict[str, Any], oracle_class: Any) -> None:
    del tiny["vocab"]["<|endoftext|>"]
    ours, oracle = GPT2Tokenizer(**tiny, pad_token="<p>"), oracle_class(**tiny, pad_token="<p>")
    assert ours.eos_token_id == oracle.eos_token_id == 258
    assert ours.pad_token_id == oracle.pad_token_id == 259
    assert ours.vocab_size == oracle.vocab_size == 258


def test_an_unknown_token_has_the_id_of_unk(both: Maker) -> None:
    ours, oracle = both()
    tokens = ["Ġthe", "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == oracle.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("Ġthe") == oracle.convert_tokens_to_ids("Ġthe")


# Files

OPTIONS = [
    {},
    {"add_bos_token": True, "add_prefix_space": True, "model_max_length": 77, "padding_side": "left"},
    {"pad_token": "<|pad|>", "extra_special_tokens": ["<x>"], "truncation_side": "left", "errors": "ignore"},
    {"pad_token": AddedToken("<p>", lstrip=True, special=True), "add_bos_token": True, "split_special_tokens": True},
]
ATTRIBUTES = "model_max_length padding_side truncation_side add_prefix_space split_special_tokens special_tokens_map"


def assert_equal_tokenizers(made: Any, wanted: Any) -> None:
    for name in ATTRIBUTES.split():
        assert getattr(made, name) == getattr(wanted, name), name
    assert made.get_vocab() == wanted.get_vocab()
    assert made.added_tokens_decoder == wanted.added_tokens_decoder
    assert made.all_special_ids == wanted.all_special_ids
    texts = ["Hello  <p> world<x> <|endoftext|>", "<|pad|>unbelievable"]
    assert_same(made(texts, texts, **EVERYTHING), wanted(texts, texts, **EVERYTHING))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_saved_loads_equal_here_and_in_transformers(
    tiny: dict[str, Any], oracle_class: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    saved = GPT2Tokenizer(**tiny, **options)
    saved.add_tokens(["late"])
    saved.save_pretrained(tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(
        ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    )
    for kind in (GPT2Tokenizer, oracle_class):
        assert_equal_tokenizers(kind.from_pretrained(tmp_path / "new"), saved)
    assert GPT2Tokenizer.from_pretrained(tmp_path / "new").add_bos_token == options.get("add_bos_token", False)
    (tmp_path / "new" / "tokenizer.json").unlink()
    for kind in (GPT2Tokenizer, oracle_class):
        assert_equal_tokenizers(kind.from_pretrained(tmp_path / "new"), saved)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_transformers_saves_loads_equal(
    tiny: dict[str, Any], oracle_class: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    saved = oracle_class(**tiny, **options)
    saved("leave truncation behind", truncation=True, max_length=2)
    saved.save_pretrained(tmp_path)
    assert_equal_tokenizers(GPT2Tokenizer.from_pretrained(tmp_path), oracle_class.from_pretrained(tmp_path))


def test_saving_writes_back_what_it_does_not_know(tiny: dict[str, Any], tmp_path: Path) -> None:
    GPT2Tokenizer(**tiny).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ x }}"}))
    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["chat_template"] == "{{ x }}"


def test_the_older_files_are_honoured(tiny: dict[str, Any], oracle_class: Any, tmp_path: Path) -> None:
    GPT2Tokenizer(**tiny).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    described = {"content": "<pad>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    for name, content in {
        "tokenizer_config.json": {"max_len": 99, "bos_token": "<|endoftext|>", "add_bos_token": True},
        "special_tokens_map.json": {"pad_token": described, "sep_token": "<sep>"},
        "added_tokens.json": {"<pad>": 259, "<sep>": 260, "word": 261},
    }.items():
        (tmp_path / name).write_text(json.dumps(content))
    ours, oracle = GPT2Tokenizer.from_pretrained(tmp_path), oracle_class.from_pretrained(tmp_path)
    assert_equal_tokenizers(ours, oracle)
    assert ours.model_max_length == 99
    assert_same(ours("ab <pad>word<sep>"), oracle("ab <pad>word<sep>"))


@pytest.mark.parametrize("trim", [False, True])
def test_the_post_processor_of_the_hub_file_is_kept(
    tiny: dict[str, Any], oracle_class: Any, tmp_path: Path, trim: bool
) -> None:
    """The Hub's gpt2 has the byte-level post-processor, which trims offsets, and no template."""
    GPT2Tokenizer(**tiny, pad_token="<p>").save_pretrained(tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.post_processor = processors.ByteLevel(trim_offsets=trim)
    core.save(str(tmp_path / "tokenizer.json"))
    ours, oracle = GPT2Tokenizer.from_pretrained(tmp_path), oracle_class.from_pretrained(tmp_path)
    for options in ({}, {"padding": True, "truncation": True, "max_length": 5, "return_overflowing_tokens": True}):
        given = (["abc  ab c", "a"], [" b  ab", " c c"])
        assert_same(ours(*given, **EVERYTHING, **options), oracle(*given, **EVERYTHING, **options))
        assert_same(ours(given[0], **EVERYTHING, **options), oracle(given[0], **EVERYTHING, **options))
    ours.save_pretrained(tmp_path / "again")
    again = GPT2Tokenizer.from_pretrained(tmp_path / "again")
    assert_same(again(*given, **EVERYTHING), oracle(*given, **EVERYTHING))


def test_other_steps_of_tokenizer_json_are_kept(tiny: dict[str, Any], tmp_path: Path) -> None:
    """transformers' GPT2Tokenizer would drop them, and split by other rules than the file's author did."""
    GPT2Tokenizer(**tiny).save_pretrained(tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.normalizer = normalizers.Lowercase()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    core.pre_tokenizer = pre_tokenizers.Sequence(steps)
    core.save(str(tmp_path / "tokenizer.json"))
    made = GPT2Tokenizer.from_pretrained(tmp_path)
    assert made.tokenize("ABC 12") == core.encode("ABC 12").tokens == ["abc", "Ġ", "1", "2"]
    assert GPT2Tokenizer.from_pretrained(tmp_path, add_prefix_space=True).tokenize("ABC") == ["Ġ", "abc"]
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="add_prefix_space=True needs a byte-level splitter"):
        GPT2Tokenizer.from_pretrained(tmp_path, add_prefix_space=True)


def test_sides_set_in_tokenizer_json_are_the_defaults(tiny: dict[str, Any], oracle_class: Any, tmp_path: Path) -> None:
    GPT2Tokenizer(**tiny, pad_token="<p>").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["padding_side"], config["truncation_side"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.enable_padding(direction="left", pad_id=259, pad_token="<p>")
    core.enable_truncation(2, direction="left")
    core.save(str(tmp_path / "tokenizer.json"))
    ours, oracle = GPT2Tokenizer.from_pretrained(tmp_path), oracle_class.from_pretrained(tmp_path)
    assert_equal_tokenizers(ours, oracle)
    assert ours.padding_side == ours.truncation_side == "left"


def test_options_win_over_the_files(tiny: dict[str, Any], oracle_class: Any, tmp_path: Path) -> None:
    GPT2Tokenizer(**tiny, add_bos_token=True, padding_side="left", model_max_length=5).save_pretrained(tmp_path)
    options = {"add_bos_token": False, "padding_side": "right", "model_max_length": 9, "add_prefix_space": True}
    made, wanted = (kind.from_pretrained(tmp_path, **options) for kind in (GPT2Tokenizer, oracle_class))
    assert_equal_tokenizers(made, wanted)


def test_vocabulary_and_merges_may_be_files(gpt2_folder: Path, ours: GPT2Tokenizer) -> None:
    made = GPT2Tokenizer(gpt2_folder / "vocab.json", str(gpt2_folder / "merges.txt"))
    assert made.encode("Hello world") == ours.encode("Hello world") == [15496, 995]


def broken(folder: Path, name: str, text: str | None) -> Path:
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("merges.txt", None, r"no tokenizer.json, and no merges.txt; a GPT-2 tokenizer is"),
        ("vocab.json", None, r"no tokenizer.json, and no vocab.json"),
        ("vocab.json", '{"a": 0, ', r"vocab.json: is not JSON .* is the file whole\?"),
        ("vocab.json", "[1]", r"vocab.json: a JSON object was expected, not list"),
        ("vocab.json", '{"a": "0"}', r"vocab.json: the id of 'a' is '0'; ids are integers"),
        ("vocab.json", '{"\xe9": 0}', r"vocab.json: is not UTF-8 text"),
        (
            "merges.txt",
            "#version: 0.2\na b\nzz y\n",
            r"merges.txt, line 3: the merge 'zz y' needs the token 'zz', which",
        ),
        ("merges.txt", "a b\na b c\n", r"merges.txt, line 2: 'a b c' is not two tokens"),
        ("tokenizer_config.json", "{", r"tokenizer_config.json: is not JSON"),
        ("tokenizer_config.json", '{"padding_side": "top"}', r"padding_side='top' must be one of"),
        ("tokenizer_config.json", '{"pad_token": 3}', r"pad_token must be a string"),
        ("tokenizer_config.json", '{"errors": "pray"}', r"errors='pray' is none of Python's"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}', r"must map ids to tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 3}}', r"added_tokens_decoder\[1\] is no description"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"999": {"content": "yy"}}}', r"'yy' has id 999 .*get 259"),
        ("tokenizer.json", '{"version": "1.0"', r"tokenizer.json: is no tokenizer file that can be read"),
        (
            "tokenizer.json",
            json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}),
            "WordLevel",
        ),
    ],
)
def test_broken_files_are_named(
    tiny: dict[str, Any], tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    GPT2Tokenizer(**tiny).save_pretrained(tmp_path)
    if name != "tokenizer.json":
        (tmp_path / "tokenizer.json").unlink()
    broken(tmp_path, name, text)
    with pytest.raises(TokenizerError, match=message):
        GPT2Tokenizer.from_pretrained(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer.json, and no vocab.json and no merges.txt"):
        GPT2Tokenizer.from_pretrained(tmp_path)


# One object, many users


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_a_copy_is_equal_and_apart(gpt2_folder: Path, copied: Callable[[Any], Any]) -> None:
    made = GPT2Tokenizer.from_pretrained(gpt2_folder, add_bos_token=True, pad_token="<|pad|>")
    made("a", split_special_tokens=True)
    other = copied(made)
    assert_equal_tokenizers(other, made)
    assert other.add_tokens(["new"]) == 1
    assert len(made) == 50258


def test_an_encoding_survives_pickling(ours: GPT2Tokenizer) -> None:
    made = pickle.loads(pickle.dumps(ours(["Hello untokenizable"])))
    assert dict(made) == dict(ours(["Hello untokenizable"]))
    assert made.word_ids(0) == [0, 1, 1, 1]
    with pytest.raises(AttributeError, match=r"has no 'labels'; it has \['attention_mask', 'input_ids'\]"):
        _ = made.labels


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that change places at nearly every step: transformers' tokenizer mixes up its calls under this."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_threads_that_share_a_tokenizer_do_not_disturb_each_other(both: Maker, eager_threads: None) -> None:
    ours, _ = both(pad_token="<|endoftext|>")
    texts = [" ".join(["word"] * count) + "<|endoftext|>" for count in range(1, 40)]
    jobs: list[Callable[[], Any]] = [
        lambda: ours(texts, truncation=True, max_length=7, padding="max_length").input_ids,
        lambda: ours(texts, truncation=True, max_length=5, stride=2, return_overflowing_tokens=True).input_ids,
        lambda: ours(texts, padding=True, padding_side="left").input_ids,
        lambda: ours(texts, split_special_tokens=True).input_ids,
        lambda: [row.tolist() for row in ours.encode_ragged(texts)],
    ]
    alone = [job() for job in jobs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(20):
            job = (number + turn) % len(jobs)
            try:
                if jobs[job]() != alone[job]:
                    wrong.append(job)
            except BaseException:  # the library's panics too
                wrong.append(job)
                raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_real_vocabulary_survives_saving(ours: GPT2Tokenizer, oracle_class: Any, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    assert_equal_tokenizers(oracle_class.from_pretrained(tmp_path), ours)
    (tmp_path / "tokenizer.json").unlink()
    assert_equal_tokenizers(GPT2Tokenizer.from_pretrained(tmp_path), ours)


def test_calls_leave_no_trace_on_the_tokenizer(tiny: dict[str, Any], tmp_path: Path) -> None:
    ours = GPT2Tokenizer(**tiny, pad_token="<|endoftext|>")
    ours.save_pretrained(tmp_path / "before")
    ours(["a b c", "d"], padding="max_length", truncation=True, max_length=2, split_special_tokens=True)
    ours.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()


def test_the_callers_options_and_lists_are_not_written_to(gpt2_folder: Path, tiny: dict[str, Any]) -> None:
    before = copy.deepcopy(tiny)
    extra = ["<x>"]
    made = GPT2Tokenizer(**tiny, extra_special_tokens=extra)
    made.add_special_tokens({"extra_special_tokens": ["<y>"]}, replace_extra_special_tokens=False)
    assert tiny == before
    assert extra == ["<x>"]


def test_every_named_argument_of_the_oracle_is_known(oracle_class: Any) -> None:
    """transformers' own keywords for targets and messages are the only ones left out."""
    left_out = {"text_target", "text_pair_target", "verbose", "tokenizer_kwargs", "kwargs"}
    theirs = set(inspect.signature(oracle_class.__call__).parameters) - left_out
    assert theirs <= set(inspect.signature(GPT2Tokenizer.__call__).parameters)
    for name in ("decode", "batch_decode", "convert_ids_to_tokens", "add_tokens", "add_special_tokens", "pad"):
        theirs = set(inspect.signature(getattr(oracle_class, name)).parameters) - left_out
        assert theirs <= set(inspect.signature(getattr(GPT2Tokenizer, name)).parameters), name
