"""The ner task finds what transformers' pipeline finds, and in a long document what it finds in its parts."""

import itertools
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2model import GPT2Config, GPT2ForTokenClassification, GPT2Tokenizer
from pipeline.tasks.entities import Strategy
from pipeline.tasks.ner import NerOptions, NerTask
from tests.pipeline.answers import answers

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC")
STRATEGIES: tuple[Strategy, ...] = ("none", "simple", "first", "average", "max")
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
HARD_TEXT = st.lists(ANY_TEXT | st.sampled_from([" ", "  ", "\n", "\u3000", "😀", "<|endoftext|>"]), max_size=5).map(
    "".join
)


class Tagger:
    """The task over one checkpoint."""

    def __init__(self, model: GPT2ForTokenClassification, tokenizer: GPT2Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def __call__(self, columns: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        names = {name: name for name in columns}
        task = NerTask(NerOptions(**options), names, self.tokenizer, self.model.config)
        rows, result = answers(task, self.model, columns, tokens_per_batch=2048)
        assert not result.errors
        return rows

    def entities(self, texts: Sequence[str], **options: Any) -> list[list[dict[str, Any]]]:
        return [row["entities"] for row in self({"text": pa.array(texts, pa.string())}, **options)]


@pytest.fixture(scope="module")
def english(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with GPT-2's own vocabulary, whose neighbouring tokens differ in their labels."""
    folder = tmp_path_factory.mktemp("english")
    torch.manual_seed(3)
    model = GPT2ForTokenClassification(
        GPT2Config(n_positions=512, n_embd=32, n_layer=2, n_head=4, id2label=dict(enumerate(IOB)))
    )
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "gpt2-tokenizer" / name, folder)
    return folder


@pytest.fixture(scope="module")
def tagger(english: Path) -> Tagger:
    return Tagger(GPT2ForTokenClassification.from_pretrained(english), GPT2Tokenizer.from_pretrained(english))


@pytest.fixture(scope="module")
def words(shared_data: Path) -> list[list[str]]:
    """Tweets of WNUT-17."""
    rows: list[list[str]] = pq.read_table(shared_data / "wnut17_test.parquet").column("tokens").to_pylist()
    return rows[::9]


Reference = Callable[..., list[list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def reference(english: Path) -> Iterator[Reference]:
    """transformers' pipeline; with `whole_characters`, tokens that begin within a character never begin a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        from transformers.pipelines.token_classification import TokenClassificationPipeline

        class WholeCharacters(TokenClassificationPipeline):  # type: ignore[misc]
            def gather_pre_entities(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
                tokens: list[dict[str, Any]] = super().gather_pre_entities(*args, **kwargs)
                for before, token in itertools.pairwise(tokens):
                    token["is_subword"] |= token["start"] < before["end"]
                return tokens

        model = transformers.GPT2ForTokenClassification.from_pretrained(english)
        tokenizers = [
            transformers.GPT2Tokenizer.from_pretrained(english, add_prefix_space=prefix) for prefix in (False, True)
        ]

        def call(inputs: Any, strategy: Strategy, *, whole_characters: bool = False, **options: Any) -> Any:
            tokenizer = tokenizers["is_split_into_words" in options]
            kind = WholeCharacters if whole_characters else TokenClassificationPipeline
            return kind(model=model, tokenizer=tokenizer)(inputs, aggregation_strategy=strategy, **options)

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # on a few tokens, threads mostly wait for each other
        yield call
        torch.set_num_threads(threads)


def trimmed(text: str, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What transformers found, as the task writes it: no white space at the ends, no character twice."""
    kept: list[dict[str, Any]] = []
    for each in found:
        start = max(each["start"], kept[-1]["end"] if kept else 0)
        word = text[start : each["end"]].strip()
        if word:
            start = text.index(word, start)
            name = each.get("entity_group", each.get("entity"))
            kept.append({"entity_group": name, "word": word, "start": start, "end": start + len(word)})
            kept[-1]["score"] = float(each["score"])
    return kept


def assert_same(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> None:
    assert [{**each, "score": 0} for each in ours] == [{**each, "score": 0} for each in theirs]
    np.testing.assert_allclose([each["score"] for each in ours], [each["score"] for each in theirs], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_equals_transformers_on_tweets(
    tagger: Tagger, words: list[list[str]], reference: Reference, strategy: Strategy
) -> None:
    texts = [" ".join(row) for row in words if " ".join(row).isascii()]
    ours = tagger.entities(texts, strategy=strategy)
    assert sum(map(len, ours)) > 5 * len(texts)
    for text, found, theirs in zip(texts, ours, reference(texts, strategy), strict=True):
        assert_same(found, trimmed(text, theirs))
        if strategy != "none":
            assert len(found) == len(theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_equals_transformers_on_words(
    english: Path, tagger: Tagger, words: list[list[str]], reference: Reference, strategy: Strategy
) -> None:
    spaced = Tagger(tagger.model, GPT2Tokenizer.from_pretrained(english, add_prefix_space=True))
    rows = spaced({"tokens": words}, strategy=strategy)
    theirs = reference(words, strategy, is_split_into_words=True, whole_characters=True)
    for given_words, row, found in zip(words, rows, theirs, strict=True):
        assert_same(row["entities"], trimmed(" ".join(given_words), found))
        assert len(row["tags"]) == len(given_words)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(HARD_TEXT.filter(bool), min_size=1, max_size=3))
def test_every_strategy_equals_transformers_on_any_text(tagger: Tagger, reference: Reference, texts: list[str]) -> None:
    for strategy in STRATEGIES:
        theirs = reference(texts, strategy, whole_characters=True)
        for text, found, other in zip(texts, tagger.entities(texts, strategy=strategy), theirs, strict=True):
            assert_same(found, trimmed(text, other))


def test_single_tokens_are_written_as_entities_are_and_in_the_texts_characters(
    tagger: Tagger, reference: Reference
) -> None:
    text = "Sarah and Wolfgang live in New York"
    (ours,), (theirs,) = tagger.entities([text], strategy="none"), reference([text], "none")
    assert theirs[-1].keys() == {"entity", "score", "index", "word", "start", "end"}
    assert ours[-1].keys() == {"entity_group", "score", "word", "start", "end"}
    assert (theirs[-1]["word"], ours[-1]["word"]) == ("\u0120York", "York")
    assert_same(ours, trimmed(text, theirs))


def test_the_label_O_alone_is_left_out(tagger: Tagger, reference: Reference) -> None:
    text = "Sarah and Wolfgang, who live in New York, sing."
    (ours,), (theirs,) = tagger.entities([text]), reference([text], "simple", ignore_labels=["PER"])
    assert {each["entity_group"] for each in ours} == {"PER", "LOC", "MISC"}
    assert {each["entity_group"] for each in theirs} == {"O", "LOC", "MISC"}
    kept = [each for each in ours if each["entity_group"] != "PER"]
    assert_same(kept, trimmed(text, [each for each in theirs if each["entity_group"] != "O"]))
    with pytest.raises(ValueError, match="ignore_labels"):
        tagger.entities([text], ignore_labels=["PER"])


def test_offsets_are_the_tokenizers(tagger: Tagger, reference: Reference) -> None:
    text = "Sarah and Wolfgang live in New York"
    places = [(2, 3)] * len(tagger.tokenizer.encode(text))
    (theirs,) = reference([text], "none", offset_mapping=[places])
    assert {(each["start"], each["end"]) for each in theirs} == {(2, 3)}
    with pytest.raises(ValueError, match="offset_mapping"):
        tagger.entities([text], strategy="none", offset_mapping=[places])


@pytest.mark.filterwarnings("ignore")
def test_a_cut_splits_no_name(tmp_path: Path, english: Path) -> None:
    import transformers

    model = GPT2ForTokenClassification(GPT2Config(n_positions=8, n_embd=4, n_layer=1, n_head=1, id2label={0: "NAME"}))
    model.save_pretrained(tmp_path)
    their_model = transformers.GPT2ForTokenClassification.from_pretrained(tmp_path)
    their_tokenizer = transformers.GPT2Tokenizer.from_pretrained(english, model_max_length=8)
    their_tokenizer.pad_token = their_tokenizer.eos_token
    reference = transformers.TokenClassificationPipeline(model=their_model, tokenizer=their_tokenizer, stride=2)
    text = "one two three four five six seven eight nine ten eleven twelve"
    (ours,) = Tagger(model, GPT2Tokenizer.from_pretrained(english)).entities([text], overlap=2)
    assert [each["word"] for each in ours] == [text]
    (theirs,) = trimmed(text, reference(text, aggregation_strategy="simple"))  # the longest of those that overlap
    assert theirs["word"] == "one two three four five six seven eight"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_context_a_document_of_100_000_characters_has_the_entities_of_its_parts(
    english: Path, words: list[list[str]], strategy: Strategy
) -> None:
    model = GPT2ForTokenClassification.from_pretrained(english)
    with torch.no_grad():  # each token is labelled by itself: what cuts windows can't change what is found
        model.transformer.wpe.weight.zero_()
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.attn.c_proj.bias.zero_()
    tagger = Tagger(model, GPT2Tokenizer.from_pretrained(english))
    line_break = int(model(torch.tensor([tagger.tokenizer.encode("\n")])).logits.argmax())
    names = {index: "O" if index == line_break else name for index, name in enumerate(["A", "B", "C", "D", "E", "F"])}
    tagger.model.config = model.config.replace(id2label=names, label2id={name: index for index, name in names.items()})
    parts = ["\n " + " ".join(row) + " " for row in words] * 8
    document = "".join(parts)
    assert len(document) > 100_000
    (whole,) = tagger.entities([document], strategy=strategy)
    begins = np.cumsum([0, *map(len, parts)]).tolist()
    expected = [
        {**each, "start": begin + each["start"], "end": begin + each["end"]}
        for begin, found in zip(begins, tagger.entities(parts, strategy=strategy), strict=False)
        for each in found
    ]
    assert_same(whole, expected)
