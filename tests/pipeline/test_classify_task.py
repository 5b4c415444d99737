"""Labels and scores equal transformers' pipeline on the same weights, and don't depend on what stands beside a row."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from gpt2model import GPT2LMHeadModel, GPT2Tokenizer
from pipeline.errors import JobError
from pipeline.tasks.classify import ClassifyOptions, ClassifyTask
from tests.pipeline.answers import answers, saved_model
from tests.pipeline.conftest import sentence

CLASSES = "GPT2ForSequenceClassification"
LABELS = ("red", "green", "blue", "none of them")
TEXTS = [sentence(seed, 1 + seed % 30) for seed in range(24)]
FOLDERS = {
    "single": {"id2label": dict(enumerate(LABELS))},
    "multi": {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "one": {"num_labels": 1},
    "numbers": {"num_labels": 3, "problem_type": "regression"},
}


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    made = {}
    for name, options in FOLDERS.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = (saved_model(CLASSES, folder, checkpoint, **options), folder)
    return made


class Classifier:
    """The task over one of the models."""

    def __init__(self, model: Any, checkpoint: Path) -> None:
        self.model = model
        self.tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)

    def task(self, **options: Any) -> ClassifyTask:
        return ClassifyTask(ClassifyOptions(**options), {}, self.tokenizer, self.model.config)

    def __call__(self, texts: list[str | None], tokens_per_batch: int = 256, **options: Any) -> Any:
        columns = pa.table({"text": pa.array(texts, pa.string())})
        return answers(self.task(**options), self.model, columns, tokens_per_batch)


@pytest.fixture
def classifier(request: pytest.FixtureRequest, models: dict[str, tuple[Any, Path]], checkpoint: Path) -> Classifier:
    return Classifier(models[getattr(request, "param", "single")][0], checkpoint)


@pytest.mark.parametrize("function", ["auto", "softmax", "sigmoid", "none"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_scores_equal_the_pipelines(
    models: dict[str, tuple[Any, Path]], checkpoint: Path, kind: str, function: str
) -> None:
    import transformers

    model, folder = models[kind]
    reference = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    asked = {} if function == "auto" else {"function_to_apply": function}
    expected = [{each["label"]: each["score"] for each in reference(text, top_k=None, **asked)} for text in TEXTS]
    rows, _ = Classifier(model, checkpoint)(TEXTS, function=function, **({"threshold": 0.0} if kind == "multi" else {}))
    for row, scores in zip(rows, expected, strict=True):
        if "value" in row:
            value = by_number(scores) if kind == "numbers" else next(iter(scores.values()))
            assert row["value"] == pytest.approx(value, rel=1e-5, abs=1e-5)
        elif "labels" in row:
            found = dict(zip(row["labels"], row["label_scores"], strict=True))
            assert found == pytest.approx({name: score for name, score in scores.items() if score >= 0}, abs=1e-5)
        else:
            assert row["label"] == max(scores, key=lambda name: scores[name])
            assert row["score"] == pytest.approx(max(scores.values()), abs=1e-5)


def test_a_pair_of_texts_is_classified_as_one_text(models: dict[str, tuple[Any, Path]], checkpoint: Path) -> None:
    import transformers

    model, folder = models["single"]
    reference = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), device="cpu")
    expected = reference({"text": "the cat sat", "text_pair": " on the mat"})
    (row,), _ = Classifier(model, checkpoint)(["the cat sat on the mat"])
    assert (row["label"], row["score"]) == (expected["label"], pytest.approx(expected["score"], abs=1e-5))


def by_number(scores: dict[str, float]) -> list[float]:
    return [scores[f"LABEL_{index}"] for index in range(len(scores))]


def test_top_labels_and_all_scores_are_the_same_numbers(classifier: Classifier) -> None:
    rows, _ = classifier(TEXTS, top_k=3, scores=True)
    for row in rows:
        best = sorted(row["scores"].items(), key=lambda each: -each[1])[:3]
        assert [(each["label"], each["score"]) for each in row["top"]] == best
        assert (row["label"], row["score"]) == best[0]
        assert sum(row["scores"].values()) == pytest.approx(1)


@pytest.mark.parametrize("classifier", ["multi"], indirect=True)
def test_a_multi_label_model_gives_every_label_above_the_threshold(classifier: Classifier) -> None:
    rows, result = classifier(TEXTS, threshold=0.6, scores=True, top_k=2)
    assert {len(row["labels"]) for row in rows} > {1}
    for row in rows:
        given = {name: score for name, score in row["scores"].items() if score >= 0.6}
        assert dict(zip(row["labels"], row["label_scores"], strict=True)) == given
        assert row["label_scores"] == sorted(given.values(), reverse=True)
    assert result.figures["label red"] == sum("red" in row["labels"] for row in rows)


def test_nulls_and_invalid_text_are_errors_and_an_empty_text_has_no_label(classifier: Classifier) -> None:
    rows, result = classifier([None, "", "cat sat"], top_k=2, scores=True)
    assert result.errors == {0: "text is null"}
    for row in rows[:2]:
        assert set(row.values()) == {None}
    assert rows[2]["label"] in LABELS


def test_a_bos_token_that_the_tokenizer_adds_is_read(classifier: Classifier) -> None:
    classifier.tokenizer.add_bos_token = True
    rows, _ = classifier(["", "cat sat"])
    ids = torch.tensor([classifier.tokenizer("cat sat")["input_ids"]])
    assert ids[0, 0] == classifier.tokenizer.bos_token_id
    logits = classifier.model(ids).logits[0].double().softmax(0)
    assert rows[0]["label"] is not None
    assert rows[1]["score"] == pytest.approx(float(logits.max()), abs=1e-5)


def test_what_a_tokenizers_own_template_adds_is_read(classifier: Classifier, checkpoint: Path, tmp_path: Path) -> None:
    GPT2Tokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    core = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(single="a $A the", special_tokens=[("a", 5), ("the", 9)])
    core.save(str(tmp_path / "tokenizer.json"))
    templated = Classifier(classifier.model, tmp_path)
    whole = templated.tokenizer(TEXTS[3])["input_ids"]
    assert (whole[0], whole[-1]) == (5, 9)
    expected = classifier.model(torch.tensor([whole])).logits[0].softmax(-1)
    (row,), _ = templated([TEXTS[3]], scores=True)
    assert [row["scores"][label] for label in LABELS] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("truncation", ["end", "start", "windows"])
def test_what_is_too_long_is_cut_as_told_and_counted(classifier: Classifier, truncation: str) -> None:
    text = sentence(1, 200)
    ids = classifier.tokenizer.encode_ragged([text])[0]
    context = classifier.model.config.n_positions
    assert len(ids) > 2 * context
    pieces = {
        "end": [ids[:context]],
        "start": [ids[-context:]],
        "windows": np.array_split(ids, -(-len(ids) // context)),
    }[truncation]
    logits = [classifier.model(torch.from_numpy(piece)[None]).logits[0].double().softmax(0) for piece in pieces]
    weights = [len(piece) / sum(map(len, pieces)) for piece in pieces]
    expected = sum(weight * scores for weight, scores in zip(weights, logits, strict=True))
    (row,), result = classifier([text], truncation=truncation, scores=True)
    assert list(row["scores"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
    summary = classifier.task().summarize(result.figures)
    told = "texts in several windows" if truncation == "windows" else "truncated texts"
    assert summary[told] == 1


WILD = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=12)
ZERO_SHOT = {"labels": ["cat", "very late house", "dog"], "template": "It was: {text}\nthen {label}."}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WILD, st.integers(1, 300), st.randoms(use_true_random=False), st.booleans())
def test_a_rows_label_does_not_depend_on_the_batch_or_the_order(
    classifier: Classifier, lm: Classifier, texts: list[str], budget: int, shuffle: random.Random, zero_shot: bool
) -> None:
    asked, options = (lm, {"zero_shot": ZERO_SHOT}) if zero_shot else (classifier, {"truncation": "windows"})
    order = list(range(len(texts)))
    shuffle.shuffle(order)
    together, _ = asked([texts[each] for each in order], budget, scores=True, **options)
    for place, row in enumerate(order):
        (alone,), _ = asked([texts[row]], scores=True, **options)
        assert together[place]["label"] == alone["label"]
        if alone["scores"] is not None:
            assert together[place]["scores"] == pytest.approx(alone["scores"], abs=1e-5)


@pytest.fixture
def lm(checkpoint: Path) -> Classifier:
    return Classifier(GPT2LMHeadModel.from_pretrained(checkpoint).requires_grad_(False), checkpoint)


def reference(lm: Classifier, prompt: str, label: str) -> float:
    """Log-likelihood of what the label adds to the prompt, by the plain model."""
    whole, given = lm.tokenizer(prompt + label)["input_ids"], len(lm.tokenizer(prompt.rstrip())["input_ids"])
    logprobs = lm.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(logprobs[place - 1, whole[place]]) for place in range(given, len(whole)))


@pytest.mark.parametrize("normalize", ["none", "tokens", "bytes"])
def test_zero_shot_scores_are_shares_of_the_labels_likelihoods(lm: Classifier, normalize: str) -> None:
    texts = ["the cat sat on the mat", "late", "日本 😀 ok"]
    rows, _ = lm(texts, zero_shot={**ZERO_SHOT, "normalize": normalize}, scores=True)
    for text, row in zip(texts, rows, strict=True):
        prompt = f"It was: {text}\nthen "
        found = []
        for label in ZERO_SHOT["labels"]:
            units = {
                "none": 1,
                "tokens": len(lm.tokenizer(prompt + label + ".")["input_ids"])
                - len(lm.tokenizer(prompt.rstrip())["input_ids"]),
                "bytes": len(label.encode()),
            }[normalize]
            found.append(reference(lm, prompt, label + ".") / units)
        shares = torch.tensor(found).softmax(0).tolist()
        assert list(row["scores"].values()) == pytest.approx(shares, abs=1e-5)
        assert row["label"] == ZERO_SHOT["labels"][int(np.argmax(shares))]


@pytest.mark.parametrize("truncation", ["end", "start"])
def test_zero_shot_shortens_the_text_and_keeps_the_template(lm: Classifier, truncation: str) -> None:
    words = sentence(7, 150).split()
    (row,), result = lm([" ".join(words)], zero_shot=ZERO_SHOT, truncation=truncation, scores=True)
    assert result.figures["truncated"] == 1
    task = lm.task(zero_shot=ZERO_SHOT, truncation=truncation)
    assert task.zero_shot is not None
    kept = task.zero_shot._shortened(" ".join(words))
    assert kept
    assert " ".join(words).startswith(kept) if truncation == "end" else " ".join(words).endswith(kept)
    (short,), _ = lm([kept], zero_shot=ZERO_SHOT, scores=True)
    assert row == short
    longest = max(task.zero_shot._encoded([kept])[0], key=lambda each: len(each[0]))[0]
    assert lm.model.config.n_positions - 8 <= len(longest) <= lm.model.config.n_positions + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 9}, "top_k 9: there are only 4 labels"),
        ({"threshold": 0.9}, "classify.threshold is 0.9, which decides nothing here"),
        ({"zero_shot": ZERO_SHOT, "function": "sigmoid"}, "zero_shot compares by softmax"),
        ({"zero_shot": ZERO_SHOT, "truncation": "windows"}, "zero_shot can't do"),
        ({"zero_shot": {**ZERO_SHOT, "template": "a " * 80 + "{text} {label}"}}, "give a shorter template"),
    ],
)
def test_options_that_the_checkpoint_cannot_honour_are_refused(
    classifier: Classifier, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        classifier.task(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no slots"}, "must hold {text} once"),
        ({"template": "{label} {text}"}, "behind it"),
        ({"labels": ["a", "a"]}, "different"),
        ({"labels": ["a", " "]}, "blank"),
        ({"labels": ["a"]}, "at least 2"),
    ],
)
def test_labels_and_templates_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifyOptions(zero_shot={**ZERO_SHOT, **changes})  # type: ignore[arg-type]


def test_braces_in_a_text_are_text(lm: Classifier) -> None:
    rows, _ = lm(["{label} {text} {0.__class__}"], zero_shot=ZERO_SHOT, scores=True)
    prompt = "It was: {label} {text} {0.__class__}\nthen "
    found = torch.tensor([reference(lm, prompt, f"{label}.") for label in ZERO_SHOT["labels"]]).softmax(0)
    assert list(rows[0]["scores"].values()) == pytest.approx(found.tolist(), abs=1e-5)


def test_white_space_and_labels_that_merge_with_the_text_cost_no_other_row(lm: Classifier) -> None:
    texts = ["the cat" + " \n\t" * 300, " \n" * 400, "the cat sat"]
    plain = {"labels": ["cat", "dog"], "template": "{text} {label}"}
    rows, result = lm(texts, zero_shot=plain, scores=True)
    assert rows[2]["label"] in plain["labels"]
    assert result.figures["truncated"] == 2
    assert rows[0] == lm(["the cat"], zero_shot=plain, scores=True)[0][0]


def test_a_label_without_tokens_of_its_own_is_the_rows_error(lm: Classifier) -> None:
    merging = next(
        (text, label)
        for text in ("the c", "the ca", "the h", "the hous")
        for label in ("at", "t", "ouse", "e")
        if len(lm.tokenizer(text + label)["input_ids"]) == len(lm.tokenizer(text)["input_ids"])
    )
    options = {"labels": [merging[1], "dog"], "template": "{text}{label}"}
    rows, result = lm([merging[0], "the cat"], zero_shot=options)
    assert "has no tokens of its own" in result.errors[0]
    assert rows[0]["label"] is None
    assert rows[1]["label"] is not None
