"""Answers equal a search of all spans over the reference's logits, and don't depend on what stands beside a row."""

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from gpt2model import GPT2Config, GPT2Tokenizer
from gpt2model.classifiers import GPT2ForQuestionAnswering
from gpt2model.tokenizer_template import Template
from pipeline.errors import JobError
from pipeline.tasks.qa import QaOptions, QaTask, cut
from tests.pipeline.answers import answers
from tests.pipeline.conftest import sentence

CONTEXT = 128
OVERLAP = 24
COLUMNS = ("answer", "start", "end", "score")
Pairs = list[tuple[str | None, str | None]]


class Answerer:
    """The task's three steps over one model and tokenizer."""

    def __init__(self, model: GPT2ForQuestionAnswering, tokenizer: GPT2Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def task(self, **options: Any) -> QaTask:
        return QaTask(QaOptions(**{"overlap": OVERLAP, **options}), {}, self.tokenizer, self.model.config)

    def __call__(self, pairs: Pairs, tokens_per_batch: int = 256, **options: Any) -> Any:
        task = self.task(**options)
        questions, contexts = (pa.array([pair[place] for pair in pairs], pa.string()) for place in (0, 1))
        return answers(task, self.model, {"question": questions, "context": contexts}, tokens_per_batch)


def random_model(vocabulary: int, positions: int) -> GPT2ForQuestionAnswering:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=vocabulary, n_positions=positions, n_embd=32, n_layer=2, n_head=4)
    model = GPT2ForQuestionAnswering(config)
    for parameter in model.parameters():  # larger weights than the initial ones, so that tokens differ in their logits
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def answerer(checkpoint: Path) -> Answerer:
    return Answerer(random_model(320, 64), GPT2Tokenizer.from_pretrained(checkpoint))


@pytest.fixture(scope="module")
def english(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with GPT-2's own vocabulary, saved for us and for the reference."""
    folder = tmp_path_factory.mktemp("english")
    random_model(50257, CONTEXT).save_pretrained(folder)
    GPT2Tokenizer.from_pretrained(shared_data / "gpt2-tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def squad(shared_data: Path) -> list[tuple[str, str]]:
    """SQuAD's questions, most of them over contexts longer than the model's, and some that are hard to slice."""
    rows = pq.read_table(shared_data / "squad_en.parquet").to_pylist()[::60]
    pairs = [(row["question"], row["context"]) for row in rows]
    pairs += [
        ("What?", "\n\n  日本 😀 and – naïve \u3000 😀😀  \t"),
        ("Who?", "Ann"),
        ("Why? ", " \n " * 90 + "because"),
    ]
    return pairs


Best = dict[tuple[int, int], float]


def reference(model: Any, tokenizer: Any, question: str, context: str, options: QaOptions) -> Best:
    """Every span, as characters, and its score, from transformers' tokens, windows and logits."""
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=CONTEXT,
        stride=options.overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best: Best = {}
    for window, ids in enumerate(encoded.input_ids):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        sides = encoded.sequence_ids(window)
        places = [place for place, side in enumerate(sides) if side == 1]
        softmax_over = [0, *places] if options.no_answer else places
        starts, ends = (
            dict(zip(softmax_over, torch.softmax(logits[0, softmax_over].double(), 0).tolist(), strict=True))
            for logits in (output.start_logits, output.end_logits)
        )
        if options.no_answer:
            best[0, 0] = min(best.get((0, 0), 1.0), starts[0] * ends[0])
        add_spans(
            best, context, {place: encoded.offset_mapping[window][place] for place in places}, starts, ends, options
        )
    return best


def add_spans(
    best: Best,
    context: str,
    chars: dict[int, tuple[int, int]],
    starts: dict[int, float],
    ends: dict[int, float],
    options: QaOptions,
) -> None:
    visible = [place for place, (start, end) in chars.items() if context[start:end].strip()]
    for i in visible:
        for j in visible:
            if i <= j < i + options.max_answer_tokens:
                start, end = chars[i][0], chars[j][1]
                start, end = end - len(context[start:end].lstrip()), start + len(context[start:end].rstrip())
                best[start, end] = max(best.get((start, end), 0.0), starts[i] * ends[j])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "template"),
    [
        ({}, {}),
        ({"no_answer": True}, {"add_bos_token": True}),
        ({"top_k": 6, "no_answer": True, "overlap": 0}, {}),
        ({"top_k": 3, "max_answer_tokens": 2}, {"add_bos_token": True, "add_eos_token": True}),
    ],
)
def test_answers_equal_a_search_of_all_spans_on_squad(
    english: Path, squad: list[tuple[str, str]], options: dict[str, Any], template: dict[str, bool]
) -> None:
    import transformers

    theirs = transformers.GPT2ForQuestionAnswering.from_pretrained(english)
    their_tokenizer = transformers.GPT2Tokenizer.from_pretrained(english, **template)
    model = GPT2ForQuestionAnswering.from_pretrained(english)
    answerer = Answerer(model, GPT2Tokenizer.from_pretrained(english, **template))
    rows, result = answerer(squad, **options)
    task = answerer.task(**options)
    assert result.errors == {}
    assert result.figures["windows"] > 1.5 * len(squad)
    for row, (question, context) in zip(rows, squad, strict=True):
        best = reference(theirs, their_tokenizer, question, context, task.options)
        found = as_answers(row)
        scores = [answer["score"] for answer in found]
        assert scores == pytest.approx(sorted(best.values(), reverse=True)[: task.options.top_k], rel=1e-4)
        for answer in found:
            assert best[answer["start"], answer["end"]] == pytest.approx(answer["score"], rel=1e-4)
            assert answer["answer"] == context[answer["start"] : answer["end"]]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("template", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
@pytest.mark.parametrize("overlap", [0, OVERLAP])
def test_the_model_reads_the_windows_that_transformers_cuts(
    english: Path, squad: list[tuple[str, str]], template: dict[str, bool], overlap: int
) -> None:
    import transformers

    config = GPT2Config.from_pretrained(english)
    task = QaTask(QaOptions(overlap=overlap), {}, GPT2Tokenizer.from_pretrained(english, **template), config)
    questions, contexts = ([pair[place] for pair in squad] for place in (0, 1))
    windows = task.prepare(pa.table({"question": questions, "context": contexts})).windows
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(english, **template)
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=CONTEXT,
        stride=overlap,
        return_overflowing_tokens=True,
    )
    assert [windows.ids[span].tolist() for span in windows.spans(np.arange(len(windows)))] == encoded.input_ids
    assert windows.rows.tolist() == encoded.overflow_to_sample_mapping


def test_no_answer_wins_for_some_questions_and_the_summary_counts_them(answerer: Answerer) -> None:
    pairs: Pairs = [(sentence(seed, 3), sentence(100 + seed, 2)) for seed in range(40)]
    rows, result = answerer([*pairs, (None, "context"), ("", "")], no_answer=True)
    unanswered = [row for row in rows if row["answer"] == ""]
    assert 0 < len(unanswered) < len(pairs)
    assert all((row["start"], row["end"]) == (0, 0) for row in unanswered)
    assert answerer.task().summarize(result.figures) == {
        "questions": len(pairs) + 1,
        "questions without an answer": len(unanswered) + 1,
        "windows": len(pairs),
    }


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"no_answer": True}, {"top_k": 3, "no_answer": True}])
def test_without_a_question_or_a_context_there_is_null_and_a_null_is_an_error(
    answerer: Answerer, options: dict[str, Any]
) -> None:
    pairs: Pairs = [
        ("", "a cat"),
        ("Who sat", ""),
        ("Who sat", " \n\t "),
        (None, "a cat"),
        ("Who sat", None),
        ("a", "cat"),
    ]
    rows, result = answerer(pairs, **options)
    for row in rows[:5]:
        assert set(row.values()) == {None}
    assert rows[5]["score"] is not None
    assert result.errors == {3: "question is null", 4: "context is null"}
    assert result.figures == {"questions": 4, "unanswered": 3 + (as_answers(rows[5])[0]["answer"] == ""), "windows": 1}


def test_no_rows_are_no_answers(answerer: Answerer) -> None:
    assert answerer([])[0] == answerer([], top_k=2)[0] == []


def test_there_are_as_many_answers_as_there_are_spans(answerer: Answerer) -> None:
    (row,), _ = answerer([("Who", "cat")], top_k=50, max_answer_tokens=100)
    letters = len(answerer.tokenizer.encode("cat"))
    assert len(row["answer"]) == letters * (letters + 1) // 2


def test_a_question_that_leaves_no_room_for_windows_is_the_rows_error(answerer: Answerer) -> None:
    question, context = sentence(1, 36), sentence(2, 60)
    tokens = len(answerer.tokenizer.encode(question))
    assert 64 - OVERLAP <= tokens < 64
    rows, result = answerer([(question, context), (question, "a"), (sentence(3, 90), "a"), ("Who", context)])
    assert list(result.errors) == [0, 2]
    assert f"the question has {tokens} tokens and leaves {64 - tokens} of the model's 64" in result.errors[0]
    assert "leaves 0 of the model's 64" in result.errors[2]
    assert [row["answer"] is None for row in rows] == [True, False, True, False]
    assert answerer([(question, context)], overlap=64 - tokens)[1].errors
    assert not answerer([(question, context)], overlap=64 - tokens - 1)[1].errors


def test_an_overlap_without_room_for_more_is_refused(answerer: Answerer) -> None:
    with pytest.raises(JobError, match=r"qa.overlap 63 .* context of 64 tokens: give 62 or less"):
        answerer.task(overlap=63)
    assert answerer([("a", sentence(1, 40))], overlap=62)[0][0]["answer"]


def test_a_template_with_the_context_first_is_refused(answerer: Answerer) -> None:
    tokenizer = GPT2Tokenizer(answerer.tokenizer.get_vocab(), [])
    tokenizer._template = Template.found(TemplateProcessing(single="$A", pair="$B $A:1", special_tokens=[]))
    with pytest.raises(JobError, match="give it a template of \\$A and \\$B"):
        Answerer(answerer.model, tokenizer).task()


@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 60), st.data())
def test_windows_hold_every_token_and_share_the_overlap(start: int, total: int, room: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    windows = list(cut(start, start + total, room, overlap))
    assert (windows[0].start, windows[-1].stop) == (start, start + total)
    for left, right in pairwise(windows):
        assert left.stop - left.start == room
        assert left.stop - right.start == overlap
        assert overlap < right.stop - right.start <= room


def test_rows_that_device_memory_cannot_hold_get_the_error_and_the_others_their_answers(
    answerer: Answerer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GPT2ForQuestionAnswering.forward_packed

    def scarce(model: Any, packed: Any) -> Any:
        if len(packed.input_ids) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, packed)

    pairs: Pairs = [("Who sat", sentence(seed, words)) for seed, words in enumerate([3, 5, 60, 4, 2, 6])]
    calm, _ = answerer(pairs)
    monkeypatch.setattr(GPT2ForQuestionAnswering, "forward_packed", scarce)
    rows, result = answerer(pairs)
    assert list(result.errors) == [2]
    assert "out of device memory" in result.errors[2]
    assert set(rows[2].values()) == {None}
    for row, undisturbed in zip(rows[:2] + rows[3:], calm[:2] + calm[3:], strict=True):
        assert_same(row, undisturbed)


def test_a_row_that_overflows_gets_the_error(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = GPT2ForQuestionAnswering.forward_packed
    longest = len(answerer.tokenizer.encode("Who sat")) + len(answerer.tokenizer.encode("on the mat, and then"))

    def overflowing(model: Any, packed: Any) -> Any:
        logits = whole(model, packed).clone()
        for length, start in zip(packed.lengths, np.cumsum([0, *packed.lengths]), strict=False):
            if length == longest:
                logits[start + 2, 0] = float("nan")
        return logits

    monkeypatch.setattr(GPT2ForQuestionAnswering, "forward_packed", overflowing)
    rows, result = answerer([("Who sat", "on"), ("Who sat", "on the mat, and then"), ("Who sat", "the mat")])
    assert list(result.errors) == [1]
    assert "not finite" in result.errors[1]
    assert set(rows[1].values()) == {None}
    assert result.figures["questions"] == 2


def as_answers(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers of a row, best first, whether its columns are lists or not."""
    columns = [row[name] if isinstance(row[name], list) else [row[name]] for name in COLUMNS]
    return [dict(zip(COLUMNS, answer, strict=True)) for answer in zip(*columns, strict=True)]


def assert_same(row: dict[str, Any], other: dict[str, Any]) -> None:
    assert row == {**other, "score": pytest.approx(other["score"], rel=1e-5)}


WILD = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n日😀ï")), max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), WILD), min_size=1, max_size=8),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_a_rows_answers_are_slices_of_its_context_and_do_not_depend_on_the_batch_or_the_order(
    answerer: Answerer, pairs: Pairs, budget: int, shuffle: random.Random, no_answer: bool
) -> None:
    order = list(range(len(pairs)))
    shuffle.shuffle(order)
    options = {"top_k": 4, "no_answer": no_answer, "overlap": 16}
    together, _ = answerer([pairs[each] for each in order], tokens_per_batch=budget, **options)
    for row, (question, context) in zip(together, [pairs[each] for each in order], strict=True):
        (alone,), _ = answerer([(question, context)], **options)
        assert (row["score"] is None) == (alone["score"] is None)
        if row["score"] is None:
            continue
        found, others = as_answers(row), as_answers(alone)
        for answer in found:
            assert context[answer["start"] : answer["end"]] == answer["answer"] == answer["answer"].strip()
            assert answer["answer"] or no_answer
        assert row["score"] == sorted(row["score"], reverse=True)
        assume(all(better - worse > 1e-4 * better for better, worse in pairwise(alone["score"])))
        for answer, other in zip(found[:3], others[:3], strict=True):  # the last may be as good as the one cut off
            assert_same(answer, other)
