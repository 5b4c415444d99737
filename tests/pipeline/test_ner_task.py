"""The ner task finds what transformers' pipeline finds, at characters that are the word, alone as in any batch."""

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
from pipeline.batching import PackRunner
from pipeline.tasks.ner import NerOptions, NerTask

IOB = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "O2")
STRATEGIES = ("none", "simple", "first", "average", "max")
CONTEXT = 64


class Tagger:
    """The task's three steps over one checkpoint."""

    def __init__(self, model: GPT2ForTokenClassification, tokenizer: GPT2Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def __call__(self, columns: Mapping[str, Any], tokens_per_batch: int = 256, **options: Any) -> tuple[Any, Any]:
        """The rows written, and the whole result."""
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        names = {name: name for name in table.column_names}
        task = NerTask(NerOptions(**{"overlap": 16, **options}), names, self.tokenizer, self.model.config)
        prepared = task.prepare(table)
        result = task.finish(prepared, task.compute(self.model, prepared, PackRunner(tokens_per_batch, 1)))
        return pa.Table.from_arrays(result.columns, schema=pa.schema(task.fields)).to_pylist(), result

    def entities(self, texts: Sequence[str], **options: Any) -> list[list[dict[str, Any]]]:
        rows, result = self({"text": pa.array(texts, pa.string())}, **options)
        assert not result.errors
        return [row["entities"] for row in rows]


def random_model(vocab_size: int, labels: Sequence[str] = IOB, **config: Any) -> GPT2ForTokenClassification:
    """Weights large enough for neighbouring tokens to differ in their labels."""
    torch.manual_seed(3)
    model = GPT2ForTokenClassification(
        GPT2Config(
            vocab_size=vocab_size,
            n_embd=32,
            n_layer=2,
            n_head=4,
            id2label=dict(enumerate(labels)),
            **{"n_positions": CONTEXT, **config},
        )
    )
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def tagger(checkpoint: Path) -> Tagger:
    """Few merges: nearly every character beyond ASCII is several tokens."""
    return Tagger(random_model(320), GPT2Tokenizer.from_pretrained(checkpoint))


@pytest.fixture(scope="module")
def english(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with GPT-2's own vocabulary and context enough for a tweet, saved for us and for the reference."""
    folder = tmp_path_factory.mktemp("english")
    random_model(50257, n_positions=512).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "gpt2-tokenizer" / name, folder)
    return folder


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

        def call(inputs: Any, strategy: str, *, whole_characters: bool = False, **options: Any) -> Any:
            prefix_space = "is_split_into_words" in options
            tokenizer = transformers.GPT2Tokenizer.from_pretrained(english, add_prefix_space=prefix_space)
            kind = WholeCharacters if whole_characters else TokenClassificationPipeline
            return kind(model=model, tokenizer=tokenizer)(inputs, aggregation_strategy=strategy, **options)

        yield call


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
    english: Path, words: list[list[str]], reference: Reference, strategy: str
) -> None:
    tagger = Tagger(GPT2ForTokenClassification.from_pretrained(english), GPT2Tokenizer.from_pretrained(english))
    texts = [" ".join(row) for row in words if " ".join(row).isascii()]
    ours = tagger.entities(texts, strategy=strategy, overlap=128)
    assert sum(map(len, ours)) > 5 * len(texts)
    for text, found, theirs in zip(texts, ours, reference(texts, strategy), strict=True):
        assert_same(found, trimmed(text, theirs))
        if strategy != "none":
            assert len(found) == len(theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_equals_transformers_on_words(
    english: Path, words: list[list[str]], reference: Reference, strategy: str
) -> None:
    tokenizer = GPT2Tokenizer.from_pretrained(english, add_prefix_space=True)
    tagger = Tagger(GPT2ForTokenClassification.from_pretrained(english), tokenizer)
    rows, _ = tagger({"tokens": words}, strategy=strategy, overlap=128)
    theirs = reference(words, strategy, is_split_into_words=True, whole_characters=True)
    for given_words, row, found in zip(words, rows, theirs, strict=True):
        assert_same(row["entities"], trimmed(" ".join(given_words), found))
        assert len(row["tags"]) == len(given_words)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_every_strategy_equals_transformers_on_any_text(english: Path, reference: Reference, texts: list[str]) -> None:
    tagger = Tagger(GPT2ForTokenClassification.from_pretrained(english), GPT2Tokenizer.from_pretrained(english))
    for strategy in STRATEGIES:
        theirs = reference(texts, strategy, whole_characters=True)
        for text, found, other in zip(texts, tagger.entities(texts, strategy=strategy), theirs, strict=True):
            assert_same(found, trimmed(text, other))
