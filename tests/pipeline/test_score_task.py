"""Scores equal the reference implementations' on the same weights, and don't depend on what stands beside a row."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from pipeline.tasks.score import ScoreOptions, ScoreTask
from tests.pipeline.answers import answers
from tests.pipeline.conftest import sentence

DOCUMENTS = 12


class Scorer:
    """The task's three steps over one checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.model = GPT2LMHeadModel.from_pretrained(folder)
        self.tokenizer = GPT2Tokenizer.from_pretrained(folder)

    def __call__(
        self, columns: dict[str, list[str | None]], tokens_per_batch: int = 256, threads: int = 1, **options: Any
    ) -> Any:
        task = ScoreTask(ScoreOptions(**options), {name: name for name in columns}, self.tokenizer, self.model.config)
        return answers(task, self.model, columns, tokens_per_batch, threads)


@pytest.fixture(scope="module")
def scorer(checkpoint: Path) -> Scorer:
    return Scorer(checkpoint)


@pytest.fixture(scope="module")
def english(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with GPT-2's own vocabulary, saved for us and for the reference."""
    folder = tmp_path_factory.mktemp("english")
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(n_positions=128, n_embd=64, n_layer=2, n_head=4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    GPT2Tokenizer.from_pretrained(shared_data / "gpt2-tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def documents(shared_data: Path) -> list[str]:
    """WikiText-2 articles of many lengths, most of them longer than the context of 128 tokens."""
    rows = pq.read_table(shared_data / "wikitext2_test.parquet").column("text").to_pylist()
    texts = ["".join(rows[start : start + 1 + start % 9]) for start in range(0, 40 * DOCUMENTS, 40)]
    return ["", *[text for text in texts if text.strip()]]


@pytest.fixture(scope="module")
def lm_eval_model(english: Path) -> Any:
    import transformers
    from lm_eval.models.huggingface import HFLM

    model = transformers.GPT2LMHeadModel.from_pretrained(english)
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(english)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu", max_length=128)


def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


@pytest.mark.filterwarnings("ignore")
def test_rolling_equals_lm_eval_on_wikitext(english: Path, documents: list[str], lm_eval_model: Any) -> None:
    theirs = lm_eval_model.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in documents]))
    ours, _ = Scorer(english)({"text": documents})
    assert max(row["num_tokens"] for row in ours) > 3 * 128
    np.testing.assert_allclose([row["loglikelihood"] for row in ours], theirs, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_prompt_and_completion_equal_lm_eval_with_its_quirks(
    english: Path, documents: list[str], lm_eval_model: Any
) -> None:
    pairs = [(text[: len(text) // 3], text[len(text) // 3 : len(text) // 2][:300]) for text in documents[1:]]
    pairs += [("", "No prompt at all"), ("Spaces at the end   ", "belong to the completion"), ("x", " y")]
    pairs += [("", "<|endoftext|>after the start token"), ("A prompt", "<|endoftext|>")]
    pairs += [("word " * 300, "after a prompt that is too long")]
    theirs = lm_eval_model.loglikelihood(requests("loglikelihood", pairs))
    ours, result = Scorer(english)({"prompt": [pair[0] for pair in pairs], "completion": [pair[1] for pair in pairs]})
    np.testing.assert_allclose([row["loglikelihood"] for row in ours], [value for value, _ in theirs], rtol=1e-4)
    assert [row["is_greedy"] for row in ours] == [is_greedy for _, is_greedy in theirs]
    assert result.figures["truncated"] >= 1


@pytest.mark.filterwarnings("ignore")
def test_a_greedy_completion_is_told_from_another(english: Path, lm_eval_model: Any) -> None:
    scorer = Scorer(english)
    prompt = "The best"
    ids = torch.tensor([scorer.tokenizer.encode(prompt)])
    for _ in range(40):
        first = scorer.model(ids).logits[0, -1].argmax()
        completion = scorer.tokenizer.decode([int(first)])
        if scorer.tokenizer.encode(prompt + completion)[: ids.shape[1]] == ids[0].tolist() and completion.strip():
            break
        prompt += " better"
        ids = torch.tensor([scorer.tokenizer.encode(prompt)])
    pairs = [(prompt, completion), (prompt, " zebra")]
    theirs = lm_eval_model.loglikelihood(requests("loglikelihood", pairs))
    ours, _ = scorer({"prompt": [pair[0] for pair in pairs], "completion": [pair[1] for pair in pairs]})
    assert [row["is_greedy"] for row in ours] == [is_greedy for _, is_greedy in theirs] == [True, False]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stride", [32, 64, 128])
def test_sliding_equals_the_loop_of_the_hugging_face_guide(english: Path, documents: list[str], stride: int) -> None:
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(english)
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(english)
    ours, _ = Scorer(english)({"text": documents[1:]}, window="sliding", stride=stride, start_token="none")
    for row, text in zip(ours, documents[1:], strict=True):
        ids = torch.tensor([tokenizer(text).input_ids])
        total, scored, previous = 0.0, 0, 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + 128, ids.shape[1])
            labels = ids[:, begin:end].clone()
            labels[:, : -(end - previous)] = -100
            count = int((labels[:, 1:] != -100).sum())
            if count:
                total -= float(model(ids[:, begin:end], labels=labels).loss) * count
                scored += count
            previous = end
            if end == ids.shape[1]:
                break
        assert row["num_tokens"] == scored
        assert row["loglikelihood"] == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("start_token", ["bos", "none"])
def test_columns_agree_with_each_other_and_with_a_plain_forward_pass(scorer: Scorer, start_token: str) -> None:
    text = sentence(3, 9)
    (row,), _ = scorer({"text": [text]}, start_token=start_token, token_logprobs=True)
    ids = scorer.tokenizer.encode(text)
    start = [scorer.tokenizer.bos_token_id] if start_token == "bos" else []
    with torch.no_grad():
        logits = scorer.model(torch.tensor([start + ids])).logits[0]
    expected = torch.log_softmax(logits, -1)[:-1].gather(1, torch.tensor((start + ids)[1:])[:, None])[:, 0]
    assert row["token_ids"] == (start + ids)[1:]
    np.testing.assert_allclose(row["token_logprobs"], expected, rtol=1e-4, atol=1e-5)
    assert row["num_tokens"] == len(row["token_ids"])
    assert row["loglikelihood"] == pytest.approx(float(expected.sum()), rel=1e-5)
    assert row["perplexity"] == pytest.approx(math.exp(-row["loglikelihood"] / row["num_tokens"]))
    assert row["bits_per_byte"] == pytest.approx(-row["loglikelihood"] / math.log(2) / len(text.encode()))


@pytest.mark.parametrize("options", [{}, {"start_token": "none"}, {"window": "sliding"}, {"token_logprobs": True}])
def test_empty_is_a_text_and_null_is_an_error(scorer: Scorer, options: dict[str, Any]) -> None:
    table, result = scorer({"text": ["", None, sentence(1, 5)]}, **options)
    assert (table[0]["loglikelihood"], table[0]["num_tokens"], table[0]["perplexity"]) == (0.0, 0, None)
    assert set(table[1].values()) == {None}
    assert result.errors == {1: "text is null"}
    assert table[2]["num_tokens"] > 0
    assert result.figures["tokens"] == table[2]["num_tokens"]


def test_rows_that_device_memory_cannot_hold_get_the_error_and_the_others_their_values(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpt2model.scoring

    whole = gpt2model.scoring.token_logprobs

    def scarce(model: Any, packed: Any, targets: Any, **options: Any) -> Any:
        if len(packed.input_ids) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, packed, targets, **options)

    texts = [sentence(seed, words) for seed, words in enumerate([3, 5, 60, 8, 2, 9])]
    calm, _ = scorer({"text": texts}, token_logprobs=True)
    monkeypatch.setattr(gpt2model.scoring, "token_logprobs", scarce)
    table, result = scorer({"text": texts}, token_logprobs=True)
    assert list(result.errors) == [2]
    assert "out of device memory" in result.errors[2]
    for row in (0, 1, 3, 4, 5):
        assert table[row]["loglikelihood"] == pytest.approx(calm[row]["loglikelihood"], rel=1e-5)
        assert table[row]["token_ids"] == calm[row]["token_ids"]
        assert table[row]["token_logprobs"] == pytest.approx(calm[row]["token_logprobs"], rel=1e-4, abs=1e-5)


def test_a_row_that_overflows_gets_the_error_and_stays_out_of_the_figures(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpt2model.scoring

    whole = gpt2model.scoring.token_logprobs
    texts = [sentence(seed, words) for seed, words in enumerate([3, 30, 8])]
    longest = len(scorer.tokenizer.encode(texts[1]))

    def overflowing(model: Any, packed: Any, targets: Any, **options: Any) -> Any:
        logprobs, greedy = whole(model, packed, targets, **options)
        starts = np.cumsum([0, *packed.lengths])
        for length, start in zip(packed.lengths, starts, strict=False):
            if length == longest:
                logprobs = logprobs.clone()
                logprobs[start + 2] = float("nan")
        return logprobs, greedy

    monkeypatch.setattr(gpt2model.scoring, "token_logprobs", overflowing)
    table, result = scorer({"text": texts})
    assert list(result.errors) == [1]
    assert "not finite" in result.errors[1]
    assert table[1]["loglikelihood"] is None
    assert math.isfinite(result.figures["loglikelihood"])


WILD = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WILD, st.integers(1, 300), st.randoms(use_true_random=False))
def test_a_rows_answer_does_not_depend_on_the_batch_or_the_order(
    scorer: Scorer, texts: list[str], budget: int, shuffle: random.Random
) -> None:
    order = list(range(len(texts)))
    shuffle.shuffle(order)
    together, _ = scorer({"text": [texts[each] for each in order]}, tokens_per_batch=budget)
    for place, row in enumerate(order):
        (alone,), _ = scorer({"text": [texts[row]]})
        assert together[place]["num_tokens"] == alone["num_tokens"]
        assert together[place]["loglikelihood"] == pytest.approx(alone["loglikelihood"], rel=1e-5, abs=1e-5)


def test_values_do_not_depend_on_the_number_of_threads(scorer: Scorer) -> None:
    texts = [sentence(seed, seed % 40) for seed in range(60)]
    one, _ = scorer({"text": texts})
    assert scorer({"text": texts}, threads=3)[0] == one


def test_the_summary_is_weighted_by_token(scorer: Scorer) -> None:
    texts = [sentence(seed, words) for seed, words in enumerate([2, 30, 7])]
    table, result = scorer({"text": texts})
    total = sum(row["loglikelihood"] for row in table)
    summary = ScoreTask(ScoreOptions(), {}, scorer.tokenizer, scorer.model.config).summarize(result.figures)
    assert summary["scored tokens"] == sum(row["num_tokens"] for row in table)
    assert summary["perplexity per token"] == pytest.approx(math.exp(-total / sum(row["num_tokens"] for row in table)))
    assert summary["perplexity per word"] == pytest.approx(math.exp(-total / 39))
    assert summary["perplexity per byte"] == pytest.approx(math.exp(-total / sum(len(t.encode()) for t in texts)))
