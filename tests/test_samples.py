"""The committed samples are what samples/build.py makes; the sample model and its heads know their small world."""

import importlib
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from gpt2model import GPT2Config, GPT2LMHeadModel
from gpt2model.classifiers import GPT2ForQuestionAnswering, GPT2ForSequenceClassification, GPT2ForTokenClassification

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
MODEL = SAMPLES / "gpt2-tiny"
HEADS = {
    "gpt2-tiny-topic": GPT2ForSequenceClassification,
    "gpt2-tiny-ner": GPT2ForTokenClassification,
    "gpt2-tiny-qa": GPT2ForQuestionAnswering,
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")
Span = tuple[int, int, str]
CACHES = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def source(name: str) -> ModuleType:
    """A module of samples/, which is a folder of scripts and no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SAMPLES)
        return importlib.import_module(name)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Passes this small gain nothing from a second thread, and on a busy machine they wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def test_the_quiz_is_what_the_corpus_makes() -> None:
    tables, quiz = source("tables"), pq.read_table(SAMPLES / "quiz.parquet")
    assert quiz.schema.equals(tables.QUIZ_SCHEMA)
    assert quiz.to_pylist() == tables.quiz_rows()


def test_answers_stand_in_the_context_where_the_quiz_says() -> None:
    rows = pq.read_table(SAMPLES / "quiz.parquet").to_pylist()
    answered = [row for row in rows if row["answer"] is not None]
    assert 50 < len(answered) < len(rows) == 100
    assert all(row["context"][row["start"] :].startswith(row["answer"]) for row in answered)
    assert all(row["start"] is None for row in rows if row["answer"] is None)


def test_the_choices_are_what_the_corpus_makes() -> None:
    tables, choices = source("tables"), pq.read_table(SAMPLES / "choices.parquet")
    assert choices.schema.equals(tables.CHOICES_SCHEMA)
    assert choices.to_pylist() == tables.choice_rows()


def test_choices_are_two_to_four_and_all_different(questions: list[dict[str, Any]]) -> None:
    rows = pq.read_table(SAMPLES / "choices.parquet").to_pylist()
    assert len(rows) == 60
    assert {len(row["choices"]) for row in rows} == {2, 3, 4}
    assert all(len(set(row["choices"])) == len(row["choices"]) > row["answer"] for row in rows)
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}
    assert not {row["prompt"] for row in rows} & {question["prompt"] for question in questions}


def test_the_choice_that_fits_is_the_likeliest(model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    def logprob(prompt: list[int], choice: str) -> float:
        return token_logprobs(model, prompt + tokenizer.encode(choice).ids)[len(prompt) :].sum().item()

    def chosen(row: dict[str, Any]) -> int:
        prompt = tokenizer.encode(row["prompt"]).ids
        logprobs = [logprob(prompt, choice) for choice in row["choices"]]
        return logprobs.index(max(logprobs))

    rows = pq.read_table(SAMPLES / "choices.parquet").to_pylist()
    assert sum(chosen(row) == row["answer"] for row in rows) >= 0.9 * len(rows)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_half_precision_beside_the_same_tokenizer(name: str) -> None:
    assert all((SAMPLES / name / file).read_bytes() == (MODEL / file).read_bytes() for file in TOKENIZER_FILES)
    head = HEADS[name].from_pretrained(SAMPLES / name)
    assert head.dtype == torch.float16
    assert head.config.architectures == (HEADS[name].__name__,)


def test_the_labels_are_those_of_the_lessons() -> None:
    lessons = source("lessons").LESSONS
    topic, ner = (
        HEADS[name].from_pretrained(SAMPLES / name).config.id2label for name in ("gpt2-tiny-topic", "gpt2-tiny-ner")
    )
    assert tuple(topic.values()) == lessons["gpt2-tiny-topic"].labels
    assert tuple(ner.values()) == ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")


@torch.inference_mode()
def test_the_topic_head_knows_the_topics(reviews: pa.Table, tokenizer: Tokenizer) -> None:
    head = GPT2ForSequenceClassification.from_pretrained(SAMPLES / "gpt2-tiny-topic", dtype=torch.float32)
    rows = [row for row in reviews.to_pylist() if row["text"]]
    ids = [tokenizer.encode(row["text"]).ids[:512] for row in rows]
    told = [head.config.id2label[int(head(torch.tensor([each])).logits.argmax())] for each in ids]
    assert sum(label == row["topic"] for label, row in zip(told, rows, strict=True)) >= 0.97 * len(rows)


@torch.inference_mode()
def test_the_ner_head_finds_the_names(tokenizer: Tokenizer) -> None:
    head = GPT2ForTokenClassification.from_pretrained(SAMPLES / "gpt2-tiny-ner", dtype=torch.float32)
    kinds = source("lessons").KIND_TAGS
    right = wrong = 0
    for document in told_reviews():
        encoding = tokenizer.encode(document.text)
        logits = head(torch.tensor([encoding.ids[:512]])).logits[0]
        found = names(document.text, encoding.offsets, [head.config.id2label[int(tag)] for tag in logits.argmax(-1)])
        known = {(name.start, name.end, kinds[name.kind]) for name in document.entities}
        right += len(found & known)
        wrong += len(found ^ known)
    assert 2 * right / (2 * right + wrong) >= 0.95


def told_reviews() -> list[Any]:
    """The documents that stand in reviews.parquet as they were told, so that their names are known."""
    told, rows = source("corpus").documents("held-out", 400), source("tables").review_rows()
    return [document for document, row in zip(told, rows, strict=True) if document.text == row["text"]]


def names(text: str, offsets: list[tuple[int, int]], tags: list[str]) -> set[Span]:
    """Tokens into names, as the strategy "simple" has it: a B begins one, and so does a change of kind."""
    spans, last = list[Span](), "O"
    for (start, end), tag in zip(offsets, tags, strict=False):
        if tag != "O" and (tag[0] == "B" or tag[2:] != last[2:]):
            spans.append((start + text[start:end].startswith(" "), end, tag[2:]))
        elif tag != "O":
            spans[-1] = (spans[-1][0], end, tag[2:])
        last = tag
    return set(spans)


@torch.inference_mode()
def test_the_qa_head_answers_the_quiz(tokenizer: Tokenizer) -> None:
    head = GPT2ForQuestionAnswering.from_pretrained(SAMPLES / "gpt2-tiny-qa", dtype=torch.float32)
    rows = pq.read_table(SAMPLES / "quiz.parquet").to_pylist()
    assert sum(answer(head, tokenizer, row) == row["answer"] for row in rows) >= 0.95 * len(rows)


def answer(head: GPT2ForQuestionAnswering, tokenizer: Tokenizer, row: dict[str, Any]) -> str | None:
    """The likeliest span of the context, or None where the first token, that of no answer, is likelier."""
    encoding = tokenizer.encode(row["question"], row["context"])
    output = head(torch.tensor([encoding.ids[:512]]))
    scores = (output.start_logits[0, :, None] + output.end_logits[0, None, :]).triu()
    context = torch.tensor(encoding.sequence_ids[:512]) == 1
    spans = scores.masked_fill(~(torch.ones_like(scores).triu().bool() & context[:, None]), -torch.inf)
    first, last = divmod(int(spans.argmax()), len(context))
    start, end = encoding.offsets[first][0], encoding.offsets[last][1]
    return row["context"][start:end].strip() if spans.max() > scores[0, 0] else None


def test_each_token_of_a_name_is_tagged_and_no_other(tokenizer: Tokenizer) -> None:
    lessons, told = source("lessons"), list(source("corpus").documents("train", 50))
    kinds = lessons.KIND_TAGS
    for document, example in zip(told, lessons.tag_examples(tokenizer, told, 512), strict=True):
        tags = [lessons.TAG_LABELS[tag] for tag in example.labels["labels"]]
        known = {(name.start, name.end, kinds[name.kind]) for name in document.entities}
        assert names(document.text, tokenizer.encode(document.text).offsets, tags) == known


def test_answers_are_taught_as_the_tokens_that_spell_them(tokenizer: Tokenizer) -> None:
    told = list(source("corpus").documents("train", 60))
    examples = list(source("lessons").answer_examples(tokenizer, told, 512))
    answers = {(each.labels["start_positions"], each.labels["end_positions"], each.input_ids) for each in examples}
    spelt = {tokenizer.decode(ids[first : last + 1]).strip() for first, last, ids in answers if last}
    known = {one.text[name.start : name.end] for one in told for name in one.entities}
    assert 30 < len(spelt & known) == len(spelt)
    assert (0, 0) in {(first, last) for first, last, _ in answers}


def test_an_answer_beyond_the_models_context_is_taught_as_none(tokenizer: Tokenizer) -> None:
    told = list(source("corpus").documents("train", 20))
    for example in source("lessons").answer_examples(tokenizer, told, 12):
        assert len(example.input_ids) <= 12
        assert example.labels["end_positions"] < 12


def test_examples_of_a_batch_are_padded_on_the_right() -> None:
    training = source("head_training")
    examples = [training.Example((5, 6, 7), {"labels": (1, 2, 3)}), training.Example((8,), {"labels": (4,)})]
    batch = training.collate(examples)
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_the_heads_are_built_from_a_model_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = source("build")
    monkeypatch.setattr(build, "NUM_TRAIN", 20)
    shutil.copytree(MODEL, tmp_path / MODEL.name)
    build.build(tmp_path, ["heads"])
    for name, head_class in HEADS.items():
        assert head_class.from_pretrained(tmp_path / name).dtype == torch.float16
        assert all((tmp_path / name / file).read_bytes() == (MODEL / file).read_bytes() for file in TOKENIZER_FILES)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_taught_again_has_the_same_weights(name: str, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
    lessons, told = source("lessons"), list(source("corpus").documents("train", 20))
    once, again = (lessons.teach(model, tokenizer, lessons.LESSONS[name], told).state_dict() for _ in range(2))
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not torch.equal(once["transformer.wte.weight"], model.state_dict()["transformer.wte.weight"])


def test_training_again_gives_the_same_weights() -> None:
    training = source("training")
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=31, eos_token_id=31)
    texts = [[token % 31 for token in range(start, start + 9)] for start in range(20)]
    phases = (training.Phase(steps=3, rows=2, length=8), training.Phase(steps=2, rows=2, length=16))
    once, again = (training.train(config, texts, phases).state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_the_samples_are_small() -> None:
    kept = [path for path in SAMPLES.rglob("*") if path.is_file() and not set(path.parts) & CACHES]
    assert sum(path.stat().st_size for path in kept) < 13_000_000
