"""The committed samples are what samples/build.py makes, and the sample model has learnt its small world."""

import importlib
import json
import math
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from gpt2model import GPT2Config, GPT2LMHeadModel

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
MODEL = SAMPLES / "gpt2-tiny"
CACHES = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def source(name: str) -> ModuleType:
    """A module of samples/, which is a folder of scripts and no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SAMPLES)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def reviews() -> pa.Table:
    return pq.read_table(SAMPLES / "reviews.parquet")


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train_texts() -> list[str]:
    return source("build").train_texts()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(MODEL)


@torch.inference_mode()
def token_logprobs(model: GPT2LMHeadModel, token_ids: list[int]) -> torch.Tensor:
    """Log-probability of each token of a text, the first one after <|endoftext|>."""
    input_ids = torch.tensor([[model.config.bos_token_id, *token_ids]])
    logprobs = model(input_ids[:, :-1]).logits[0].log_softmax(-1)
    return logprobs.gather(-1, input_ids[0, 1:, None])[:, 0]


def perplexity(model: GPT2LMHeadModel, tokenizer: Tokenizer, texts: list[str]) -> float:
    logprobs = torch.cat([token_logprobs(model, tokenizer.encode(text).ids) for text in texts])
    return math.exp(-logprobs.mean())


def short_texts(reviews: pa.Table, count: int) -> list[str]:
    return [text for text in reviews["text"].to_pylist() if 100 < len(text) < 800][:count]


def test_reviews_are_what_the_corpus_makes(reviews: pa.Table) -> None:
    tables = source("tables")
    assert reviews.schema.equals(tables.REVIEWS_SCHEMA)
    assert reviews.to_pylist() == tables.review_rows()


def test_questions_are_what_the_corpus_makes(questions: list[dict[str, Any]]) -> None:
    assert questions == source("tables").question_rows()


def test_reviews_are_several_compressed_row_groups() -> None:
    metadata = pq.read_metadata(SAMPLES / "reviews.parquet")
    assert metadata.num_row_groups == 3
    assert {metadata.row_group(group).column(1).compression for group in range(3)} == {"ZSTD"}


def test_reviews_hold_the_odd_rows_that_the_readme_names(reviews: pa.Table, tokenizer: Tokenizer) -> None:
    text_by_id = dict(zip(reviews["id"].to_pylist(), reviews["text"].to_pylist(), strict=True))
    assert list(text_by_id) == list(range(1000, 1400))
    assert text_by_id[1017] == ""
    assert len(tokenizer.encode(text_by_id[1042]).ids) > 2 * 512
    assert "🫖" in text_by_id[1166]
    assert text_by_id[1203] != text_by_id[1203].strip()


def test_no_review_was_seen_in_training(reviews: pa.Table, train_texts: list[str]) -> None:
    assert not set(reviews["text"].to_pylist()) & set(train_texts)


def test_the_tokenizer_is_what_the_corpus_teaches(train_texts: list[str]) -> None:
    learnt = source("bpe").learn_tokenizer(train_texts)
    assert json.loads(learnt.to_str()) == json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))


def test_the_tokenizer_follows_gpt2(tokenizer: Tokenizer) -> None:
    vocab = json.loads((MODEL / "vocab.json").read_text(encoding="utf-8"))
    assert vocab == tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(2048))
    assert vocab["<|endoftext|>"] == 2047
    assert tokenizer.decode(tokenizer.encode(every_byte := "".join(map(chr, range(0x800)))).ids) == every_byte


def test_transformers_reads_the_tokenizer_and_the_model(
    model: GPT2LMHeadModel, tokenizer: Tokenizer, reviews: pa.Table
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")
    theirs = transformers.GPT2Tokenizer.from_pretrained(MODEL)
    text = short_texts(reviews, 1)[0]
    ids = tokenizer.encode(text).ids
    assert theirs(text).input_ids == ids
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (2047, 2047, 2047)
    peer = transformers.GPT2LMHeadModel.from_pretrained(MODEL).eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            model(torch.tensor([ids])).logits, peer(torch.tensor([ids])).logits, rtol=1e-4, atol=1e-4
        )


def test_the_model_is_the_one_that_the_build_configures(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    wanted, found = source("build").model_config(tokenizer), model.config
    for option in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "bos_token_id", "eos_token_id"):
        assert getattr(found, option) == getattr(wanted, option), option
    assert model.dtype == torch.float32


def test_texts_score_far_better_than_the_same_words_shuffled(
    model: GPT2LMHeadModel, tokenizer: Tokenizer, reviews: pa.Table
) -> None:
    texts, rng = short_texts(reviews, 40), random.Random(0)
    shuffled = [" ".join(rng.sample(text.split(), len(text.split()))) for text in texts]
    assert perplexity(model, tokenizer, texts) < 8
    assert perplexity(model, tokenizer, shuffled) > 5 * perplexity(model, tokenizer, texts)


def test_late_positions_are_trained(model: GPT2LMHeadModel, tokenizer: Tokenizer, reviews: pa.Table) -> None:
    logprobs = token_logprobs(model, tokenizer.encode(reviews["text"][42].as_py()).ids[:512])
    assert logprobs[256:].mean() > logprobs[:256].mean() - 0.5


def test_the_completion_that_fits_is_the_likelier_one(
    model: GPT2LMHeadModel, tokenizer: Tokenizer, questions: list[dict[str, Any]]
) -> None:
    def mean_logprob(question: dict[str, Any]) -> float:
        prompt, completion = (tokenizer.encode(question[key]).ids for key in ("prompt", "completion"))
        return token_logprobs(model, prompt + completion)[len(prompt) :].mean().item()

    pairs = list(zip(questions[::2], questions[1::2], strict=True))
    assert len(pairs) == 30
    assert all(right["is_true"] and not wrong["is_true"] for right, wrong in pairs)
    assert sum(mean_logprob(right) > mean_logprob(wrong) for right, wrong in pairs) >= 24


def test_names_are_marked_where_they_stand() -> None:
    corpus = source("corpus")
    for document in corpus.documents("train", 300):
        ends = [0, *(entity.end for entity in document.entities)]
        for entity, earlier in zip(document.entities, ends, strict=False):
            assert earlier <= entity.start < entity.end <= len(document.text)
            name = document.text[entity.start : entity.end]
            assert name[0].isupper()
            assert name == name.strip()
            assert entity.kind in {"person", "place", "organisation"}


def test_no_template_mark_is_left_in_a_text() -> None:
    assert not [one.text for one in source("corpus").documents("train", 2000) if set(one.text) & set("{}[]|")]


def test_training_again_gives_the_same_weights() -> None:
    training = source("training")
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=31, eos_token_id=31)
    texts = [[token % 31 for token in range(start, start + 9)] for start in range(20)]
    phases = (training.Phase(steps=3, rows=2, length=8), training.Phase(steps=2, rows=2, length=16))
    once, again = (training.train(config, texts, phases).state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_the_samples_are_small() -> None:
    kept = [path for path in SAMPLES.rglob("*") if path.is_file() and not set(path.parts) & CACHES]
    assert sum(path.stat().st_size for path in kept) < 5_000_000
