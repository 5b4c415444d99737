"""Choices are scored as the plain models score them, by likelihood or by the multiple-choice head."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from pipeline.errors import JobError
from pipeline.tasks.choose import ChooseOptions, ChooseTask
from tests.pipeline.answers import answers, saved_model
from tests.pipeline.conftest import sentence

KIND = pa.list_(pa.string())
PROMPTS = [sentence(seed, 1 + seed % 9) for seed in range(8)]
CHOICES = [[sentence(100 * seed + each, 1 + each) for each in range(1 + seed % 4)] for seed in range(8)]


class Chooser:
    """The task over one model."""

    def __init__(self, model: Any, checkpoint: Path) -> None:
        self.model = model
        self.tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)

    def task(self, **options: Any) -> ChooseTask:
        return ChooseTask(ChooseOptions(**options), {}, self.tokenizer, self.model.config)

    def __call__(self, prompts: list[Any], choices: list[Any], tokens_per_batch: int = 256, **options: Any) -> Any:
        columns = pa.table({"prompt": pa.array(prompts, pa.string()), "choices": pa.array(choices, KIND)})
        return answers(self.task(**options), self.model, columns, tokens_per_batch)

    def likelihood(self, prompt: str, choice: str) -> tuple[float, int]:
        whole, given = self.tokenizer(prompt + choice)["input_ids"], len(self.tokenizer(prompt)["input_ids"])
        logprobs = self.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        tokens = range(given, len(whole))
        return sum(float(logprobs[place - 1, whole[place]]) for place in tokens), len(tokens)


@pytest.fixture(scope="module")
def lm(checkpoint: Path) -> Chooser:
    return Chooser(GPT2LMHeadModel.from_pretrained(checkpoint).requires_grad_(False), checkpoint)


@pytest.fixture(scope="module", params=["cls_index", "mean", "first"])
def head(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Chooser:
    folder = tmp_path_factory.mktemp("double")
    named = {"architectures": ("GPT2DoubleHeadsModel",), "summary_type": request.param}
    return Chooser(saved_model("GPT2DoubleHeadsModel", folder, checkpoint, **named), checkpoint)


@pytest.mark.parametrize("normalize", ["none", "tokens", "bytes"])
def test_scores_are_the_choices_likelihoods(lm: Chooser, normalize: str) -> None:
    rows, _ = lm(PROMPTS, CHOICES, normalize=normalize)
    for prompt, choices, row in zip(PROMPTS, CHOICES, rows, strict=True):
        expected = []
        for choice in choices:
            value, tokens = lm.likelihood(prompt, f" {choice}")
            expected.append(value / {"none": 1, "tokens": tokens, "bytes": len(choice.encode())}[normalize])
        assert row["scores"] == pytest.approx(expected, rel=1e-5)
        assert row["choice"] == expected.index(max(expected))


def test_double_heads_score_by_their_own_head(head: Chooser) -> None:
    rows, _ = head(PROMPTS, CHOICES)
    for prompt, choices, row in zip(PROMPTS, CHOICES, rows, strict=True):
        ids = [torch.tensor([head.tokenizer(f"{prompt} {choice}")["input_ids"]]) for choice in choices]
        expected = [float(head.model(each).mc_logits[0]) for each in ids]
        assert row["scores"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert row["choice"] == expected.index(max(expected))


def test_a_closing_cls_token_is_read_by_the_head(head: Chooser, checkpoint: Path) -> None:
    chooser = Chooser(head.model, checkpoint)
    chooser.tokenizer.add_special_tokens({"cls_token": "<|endoftext|>"})
    (row,), _ = chooser(["the cat"], [["sat on", "ran"]])
    ids = [
        [*chooser.tokenizer(f"the cat {choice}")["input_ids"], chooser.tokenizer.cls_token_id]
        for choice in ("sat on", "ran")
    ]
    expected = [float(chooser.model(torch.tensor([each])).mc_logits[0]) for each in ids]
    assert row["scores"] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_white_space_that_is_there_takes_the_separators_place(lm: Chooser) -> None:
    rows, _ = lm(["the cat", "the cat ", "the cat"], [["sat"], ["sat"], [" sat"]])
    assert rows[0] == rows[2]
    assert rows[0]["scores"] == pytest.approx(rows[1]["scores"])


def test_bad_rows_cost_only_themselves(lm: Chooser) -> None:
    long = sentence(5, 100)
    prompts = ["a cat", None, "a cat", "a cat", "a cat", "a cat", ""]
    choices: list[Any] = [["sat"], ["sat"], None, [], ["sat", None], ["sat", long], ["sat", "ran"]]
    rows, result = lm(prompts, choices)
    assert [row["choice"] for row in rows] == [0, None, None, None, None, None, rows[6]["choice"]]
    assert rows[6]["choice"] is not None
    assert result.errors[1] == "prompt is null"
    assert result.errors[2] == "choices is null"
    assert result.errors[3] == "choices is empty"
    assert result.errors[4] == "choices[1] is null"
    assert result.errors[5].startswith("choices[1] has ")


def test_a_long_prompt_loses_its_beginning_and_is_counted(lm: Chooser) -> None:
    prompt = sentence(9, 150)
    (row,), result = lm([prompt], [["sat on", "ran"]])
    ids = lm.tokenizer(prompt)["input_ids"]
    expected = []
    for choice in (" sat on", " ran"):
        own = lm.tokenizer(prompt + choice)["input_ids"][len(ids) :]
        expected.append(own)
    room = lm.model.config.n_positions + 1 - max(map(len, expected))
    for own, score in zip(expected, row["scores"], strict=True):
        whole = ids[-room:] + own
        logprobs = lm.model(torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)
        value = sum(float(logprobs[place - 1, whole[place]]) for place in range(room, len(whole)))
        assert score == pytest.approx(value, rel=1e-5)
    assert lm.task().summarize(result.figures)["prompts cut at the left"] == 1


def test_a_head_without_lengths_refuses_to_normalize(head: Chooser) -> None:
    with pytest.raises(JobError, match=r"choose\.normalize is tokens"):
        head.task(normalize="tokens")


ROWS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=15), max_size=4),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.integers(1, 300), st.randoms(use_true_random=False), st.booleans())
def test_a_rows_choice_does_not_depend_on_the_batch_or_the_order(
    lm: Chooser, head: Chooser, given_rows: list[tuple[str, list[str]]], budget: int, shuffle: random.Random, by: bool
) -> None:
    chooser, order = head if by else lm, list(range(len(given_rows)))
    shuffle.shuffle(order)
    prompts, choices = [given_rows[each][0] for each in order], [given_rows[each][1] for each in order]
    together, result = chooser(prompts, choices, budget)
    for place in range(len(order)):
        (alone,), single = chooser([prompts[place]], [choices[place]])
        assert result.errors.get(place) == single.errors.get(0)
        if alone["scores"] is not None:
            assert together[place]["scores"] == pytest.approx(alone["scores"], rel=1e-5, abs=1e-5)


def test_many_choices_are_computed_in_pieces_with_the_same_scores(lm: Chooser) -> None:
    choices = [sentence(each, 5) for each in range(30)]
    (whole,), _ = lm(["the cat"], [choices], 4096)
    (pieces,), _ = lm(["the cat"], [choices], 40)
    assert pieces["scores"] == pytest.approx(whole["scores"], rel=1e-5)


def test_an_empty_prompt_needs_a_start_token(checkpoint: Path) -> None:
    chooser = Chooser(GPT2LMHeadModel.from_pretrained(checkpoint).requires_grad_(False), checkpoint)
    chooser.tokenizer.bos_token = chooser.tokenizer.eos_token = None
    rows, result = chooser(["", "the cat"], [["sat", "ran"], ["sat", "ran"]])
    assert result.errors[0].startswith("prompt is empty")
    assert rows[1]["choice"] is not None


@pytest.mark.parametrize("option", ["summary_use_proj", "summary_proj_to_labels"])
def test_a_head_that_gives_no_score_is_refused(checkpoint: Path, option: str) -> None:
    config = GPT2Config.from_pretrained(checkpoint).replace(architectures=("GPT2DoubleHeadsModel",), **{option: False})
    with pytest.raises(JobError, match=f"gives a vector and no score .*{option}"):
        ChooseTask(ChooseOptions(), {}, GPT2Tokenizer.from_pretrained(checkpoint), config)
