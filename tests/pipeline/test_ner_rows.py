"""Rows of the ner task: offsets, long documents, label schemes, bad rows, and no influence of the batch."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2model import GPT2Tokenizer
from pipeline.errors import JobError
from pipeline.tasks.entities import Strategy
from pipeline.tasks.ner import NerOptions, NerTask
from tests.pipeline.answers import answers, saved_model
from tests.pipeline.conftest import sentence

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
STRATEGIES: tuple[Strategy, ...] = ("none", "simple", "first", "average", "max")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class Tagger:
    """The task over one model."""

    def __init__(self, model: Any, checkpoint: Path) -> None:
        self.model = model
        self.tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)

    def __call__(self, columns: dict[str, Any], tokens_per_batch: int = 256, **options: Any) -> Any:
        names = {name: name for name in columns}
        task = NerTask(NerOptions(**{"overlap": 16, **options}), names, self.tokenizer, self.model.config)
        return answers(task, self.model, columns, tokens_per_batch)

    def entities(self, texts: Sequence[str], tokens_per_batch: int = 256, **options: Any) -> list[Any]:
        rows, _ = self({"text": pa.array(texts, pa.string())}, tokens_per_batch, **options)
        return [row["entities"] for row in rows]


@pytest.fixture(scope="module")
def tagger(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    folder = tmp_path_factory.mktemp("tagger")
    model = saved_model("GPT2ForTokenClassification", folder, checkpoint, id2label=dict(enumerate(IOB)))
    return Tagger(model, checkpoint)


def assert_slices(text: str, entities: Sequence[dict[str, Any]]) -> None:
    end = 0
    for each in entities:
        assert text[each["start"] : each["end"]] == each["word"]
        assert each["word"] == each["word"].strip() != ""
        assert each["start"] >= end
        end = each["end"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=6), strategy=st.sampled_from(STRATEGIES))
def test_every_entity_is_the_characters_it_says(tagger: Tagger, texts: list[str], strategy: Strategy) -> None:
    for text, entities in zip(texts, tagger.entities(texts, strategy=strategy), strict=True):
        assert_slices(text, entities)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_entity_of_a_tweet_is_the_characters_it_says(
    tagger: Tagger, shared_data: Path, strategy: Strategy
) -> None:
    words = pq.read_table(shared_data / "wnut17_test.parquet").column("tokens").to_pylist()
    texts = [" ".join(row) for row in words]
    found = tagger.entities(texts, 2048, strategy=strategy)
    assert sum(map(len, found)) > len(texts)
    for text, entities in zip(texts, found, strict=True):
        assert_slices(text, entities)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_TEXT, min_size=1, max_size=8), st.integers(1, 300), st.randoms(use_true_random=False))
def test_a_rows_entities_do_not_depend_on_the_batch_or_the_order(
    tagger: Tagger, texts: list[str], budget: int, shuffle: random.Random
) -> None:
    order = list(range(len(texts)))
    shuffle.shuffle(order)
    together = tagger.entities([texts[each] for each in order], budget)
    for place, row in enumerate(order):
        (alone,) = tagger.entities([texts[row]])
        assert [{**each, "score": 0} for each in together[place]] == [{**each, "score": 0} for each in alone]
        np.testing.assert_allclose([e["score"] for e in together[place]], [e["score"] for e in alone], atol=1e-5)


def test_a_long_document_has_the_entities_of_its_windows(tagger: Tagger) -> None:
    document = sentence(4, 22_000)
    assert len(document) > 80_000
    (found,) = tagger.entities([document], 2048)
    assert_slices(document, found)
    ragged = tagger.tokenizer.encode_ragged([document], return_chars=True)
    assert ragged.chars is not None
    context, overlap = tagger.model.config.n_positions, 16
    labels = list[int]()
    for begin in range(0, len(ragged.ids) - overlap, context - overlap):
        ids = torch.from_numpy(ragged.ids[begin : begin + context])[None]
        labels += tagger.model(ids).logits[0].argmax(-1).tolist()[overlap if begin else 0 :]
    assert len(labels) == len(ragged.ids)
    inside = np.zeros(len(document), np.bool_)
    for entity in found:
        inside[entity["start"] : entity["end"]] = True
    for (start, end), label in zip(ragged.chars.tolist(), labels, strict=True):
        if document[start:end].strip() == document[start:end]:  # no space that an entity's end may have lost
            assert inside[start:end].all() == (label != 0)


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_every_window_is_framed_by_the_tokens_that_the_tokenizer_adds(
    tagger: Tagger, checkpoint: Path, bos: bool, eos: bool
) -> None:
    framed = Tagger(tagger.model, checkpoint)
    framed.tokenizer.add_bos_token, framed.tokenizer.add_eos_token = bos, eos
    document = "".join(char for char in sentence(6, 200) if char.isascii())
    ragged = framed.tokenizer.encode_ragged([document], return_chars=True)
    assert ragged.chars is not None
    end, room, overlap = framed.tokenizer.eos_token_id, framed.model.config.n_positions - bos - eos, 16
    expected = list[tuple[str, str, float]]()
    for begin in range(0, len(ragged.ids) - overlap, room - overlap):
        ids = ragged.ids[begin : begin + room].tolist()
        logits = framed.model(torch.tensor([[end] * bos + ids + [end] * eos])).logits[0, bos : bos + len(ids)]
        for place in range(overlap if begin else 0, len(ids)):
            word = document[slice(*ragged.chars[begin + place].tolist())].strip()
            score, label = logits[place].softmax(-1).max(-1)
            if word and label:
                expected.append((IOB[label], word, score.item()))
    (found,) = framed.entities([document], strategy="none")
    assert len(expected) > 150
    assert [(each["entity_group"], each["word"]) for each in found] == [each[:2] for each in expected]
    np.testing.assert_allclose([each["score"] for each in found], [each[2] for each in expected], atol=1e-5)


def test_parts_that_windows_do_not_cut_have_the_documents_entities(tagger: Tagger) -> None:
    document = sentence(5, 200)
    (whole,) = tagger.entities([document])
    ragged = tagger.tokenizer.encode_ragged([document], return_chars=True)
    assert ragged.chars is not None
    first_window = document[: int(ragged.chars[tagger.model.config.n_positions - 1][1])]
    (part,) = tagger.entities([first_window])
    inner = [entity for entity in whole if entity["end"] < len(first_window)]
    assert [entity["start"] for entity in part][: len(inner)] == [entity["start"] for entity in inner]
    assert len(inner) > 5


SCHEMES = {
    "IOB2": (["O", "B-X", "I-X"], [1, 2, 1, 0, 2], [(0, 2), (2, 3), (4, 5)]),
    "IOB1": (["O", "B-X", "I-X"], [2, 2, 1, 0, 2], [(0, 2), (2, 3), (4, 5)]),
    "BILOU": (["O", "B-X", "I-X", "L-X", "U-X"], [1, 2, 3, 4, 4], [(0, 3), (3, 4), (4, 5)]),
    "BIOES": (["O", "B-X", "I-X", "E-X", "S-X"], [1, 3, 1, 3, 4], [(0, 2), (2, 4), (4, 5)]),
    "plain": (["O", "X", "Y"], [1, 1, 2, 0, 1], [(0, 2), (2, 3), (4, 5)]),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_are_read_by_their_scheme(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    names, labels, expected = SCHEMES[scheme]
    model = saved_model("GPT2ForTokenClassification", tmp_path, checkpoint, id2label=dict(enumerate(names)))
    tagger = Tagger(model, checkpoint)
    text = "abcde"
    assert len(tagger.tokenizer(text)["input_ids"]) == len(text)
    logits = torch.nn.functional.one_hot(torch.tensor(labels), len(names)).float() * 20
    monkeypatch.setattr(model, "forward_packed", lambda packed: logits)
    (entities,) = tagger.entities([text])
    assert [(each["start"], each["end"]) for each in entities] == expected
    assert {each["entity_group"] for each in entities} <= {"X", "Y"}


def test_words_have_a_tag_each_and_entities_in_the_joined_text(tagger: Tagger) -> None:
    lists = [["the", "cat", "naïve", "", "日本"], [], ["a b", "c"]]
    rows, _ = tagger({"tokens": pa.array(lists, pa.list_(pa.string()))})
    for words, row in zip(lists, rows, strict=True):
        assert len(row["tags"]) == len(words)
        assert set(row["tags"]) <= set(IOB)
        assert_slices(" ".join(words), row["entities"])
    assert rows[0]["tags"][3] == "O"


def test_bad_rows_cost_only_themselves_and_an_empty_text_has_no_entities(tagger: Tagger) -> None:
    rows, result = tagger({"text": pa.array(["the cat sat", None, ""], pa.string())})
    assert result.errors == {1: "text is null"}
    assert rows[1]["entities"] is None
    assert rows[2]["entities"] == []
    rows, result = tagger({"tokens": pa.array([["a", None], None, ["b"]], pa.list_(pa.string()))})
    assert result.errors == {0: "tokens[1] is null", 1: "tokens is null"}
    assert rows[0]["tags"] is None
    assert len(rows[2]["tags"]) == 1


def test_options_that_the_checkpoint_cannot_honour_are_refused(tagger: Tagger, checkpoint: Path) -> None:
    with pytest.raises(
        JobError, match=r"ner\.overlap 64 is not below the model's context of 64 tokens, and .* give 63 "
    ):
        tagger({"text": ["x"]}, overlap=64)
    framed = Tagger(tagger.model, checkpoint)
    framed.tokenizer.add_bos_token = True
    with pytest.raises(JobError, match=r"of 64 tokens, less the 1 that the tokenizer adds, and .* give 62 or less"):
        framed({"text": ["x"]}, overlap=63)
    with pytest.raises(JobError, match="both text and tokens"):
        tagger({"text": ["x"], "tokens": [["x"]]})
