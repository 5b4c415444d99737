"""Labels are read by their scheme, words are found by spaces or given, and neighbours become entities."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.tasks.entities import Tokens, Units, find_entities, group_units, make_units
from pipeline.tasks.ner_labels import Labels, read_labels
from pipeline.tasks.ner_words import given_words, spaced_words


def labels_of(*names: str) -> Labels:
    return read_labels(dict(enumerate(names)))


def chars_of(*bounds: tuple[int, int]) -> np.ndarray:
    return np.array(bounds, np.int64).reshape(-1, 2)


@pytest.mark.parametrize(
    ("names", "groups", "begins", "ends"),
    [
        (("O", "B-X", "I-X"), ("O", "X", "X"), "B-X", ""),
        (("O", "B-X", "I-X", "L-X", "U-X"), ("O", "X", "X", "X", "X"), "B-X U-X", "L-X U-X"),
        (("O", "B-X", "I-X", "E-X", "S-X"), ("O", "X", "X", "X", "X"), "B-X S-X", "E-X S-X"),
        (("O", "B-X", "M-X", "E-X", "W-X"), ("O", "X", "X", "X", "X"), "B-X W-X", "E-X W-X"),
        (("O", "B-X", "I-X", "E-mail", "MISC"), ("O", "X", "X", "E-mail", "MISC"), "B-X", ""),
        (("E-mail", "U-boat"), ("E-mail", "U-boat"), "", ""),
        (("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1"), "", ""),
        (("O", "B-x-ray", "I-x-ray"), ("O", "x-ray", "x-ray"), "B-x-ray", ""),
    ],
)
def test_prefixes_count_where_all_labels_have_them(
    names: Sequence[str], groups: Sequence[str], begins: str, ends: str
) -> None:
    labels = labels_of(*names)
    assert tuple(labels.groups) == tuple(groups)
    assert [name for name, begin in zip(names, labels.begins, strict=True) if begin] == begins.split()
    assert [name for name, end in zip(names, labels.ends, strict=True) if end] == ends.split()
    assert [name for name, out in zip(names, labels.outside, strict=True) if out] == [n for n in names if n == "O"]


def test_a_word_begins_at_a_space_a_texts_start_and_an_unknown_token() -> None:
    texts = ["I'm in  Rome", "x<unk>y"]
    bounds = [(0, 1), (1, 3), (3, 6), (6, 7), (7, 12), (0, 1), (1, 6), (6, 7)]
    unknown = np.array([False] * 6 + [True, False])
    words = spaced_words(texts, np.array([0] * 5 + [1] * 3), chars_of(*bounds), unknown)
    assert words.tolist() == [0, 0, 1, 2, 3, 4, 5, 5]


def test_a_token_that_begins_within_a_character_begins_no_word() -> None:
    tokens = chars_of((0, 1), (0, 1), (1, 3), (2, 3), (0, 1))  # two characters of two tokens each, and another text
    words = spaced_words(["日 本", "本"], np.array([0, 0, 0, 0, 1]), tokens, np.zeros(5, np.bool_))
    assert words.tolist() == [0, 0, 1, 1, 2]


def test_given_words_keep_their_own_spaces_and_leave_out_those_between_them() -> None:
    lists = [["New York", "", "x"], [], ["y"]]  # "New York  x", "", "y"
    tokens = chars_of((0, 3), (3, 8), (8, 9), (9, 11), (0, 1))
    words = given_words(lists, np.array([0, 0, 0, 0, 2]), tokens)
    assert words.tolist() == [0, 0, -1, 2, 3]


@pytest.mark.parametrize(
    ("strategy", "labels", "scores"),
    [
        ("none", [1, 0, 0, 1], [0.6, 0.9, 0.7, 0.8]),
        ("simple", [1, 0, 0, 1], [0.6, 0.9, 0.7, 0.8]),
        ("first", [1, 1], [0.6, 0.8]),
        ("average", [0, 1], [(0.4 + 0.9 + 0.7) / 3, 0.8]),
        ("max", [0, 1], [0.9, 0.8]),
    ],
)
def test_a_strategy_labels_tokens_or_words(strategy: str, labels: list[int], scores: list[float]) -> None:
    first = np.array([0.4, 0.9, 0.7, 0.2], np.float32)
    units = make_units(np.stack([first, 1 - first], axis=1), np.array([0, 0, 0, 5]), strategy)  # type: ignore[arg-type]
    assert units.labels.tolist() == labels
    np.testing.assert_allclose(units.scores, scores, rtol=1e-6)


def units_of(labels: Sequence[int]) -> Units:
    places = np.arange(len(labels))
    return Units(places, places, np.array(labels, np.int64), np.linspace(0, 1, len(labels)))


def test_neighbours_of_one_group_are_one_but_not_across_texts() -> None:
    labels = labels_of("O", "B-X", "I-X", "I-Y")
    found = group_units(units_of([2, 2, 1, 2, 3, 0, 2, 2]), np.array([0] * 7 + [1]), labels)
    assert found.firsts.tolist() == [0, 2, 4, 5, 6, 7]
    assert found.lasts.tolist() == [1, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(found.scores[:2], [0.5 / 7, 2.5 / 7])


def test_no_tokens_make_no_entities() -> None:
    none = np.zeros(0, np.int64)
    for strategy in ("none", "simple", "first", "average", "max"):
        units = make_units(np.zeros((0, 3), np.float32), none, strategy)
        assert find_entities([""], Tokens(none, chars_of(), none), units, labels_of("O", "B-X", "I-X"), strategy) == []


def test_entities_lose_white_space_and_the_characters_that_an_earlier_one_has() -> None:
    texts = [" 😀 \u3000a"]
    tokens = Tokens(np.zeros(5, np.int64), chars_of((0, 2), (1, 2), (2, 3), (3, 4), (4, 5)), np.arange(5))
    found = find_entities(texts, tokens, units_of([1, 2, 2, 1, 2]), labels_of("O", "X", "Y"), "simple")
    assert [(each.name, each.word, each.start, each.end) for each in found] == [("X", "😀", 1, 2), ("Y", "a", 4, 5)]
