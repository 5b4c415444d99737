"""Embeddings equal transformers' hidden states, pooled, whatever stands beside a row."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2model import GPT2Model, GPT2Tokenizer
from pipeline.errors import JobError
from pipeline.tasks.embed import EmbedOptions, EmbedTask
from tests.pipeline.answers import answers
from tests.pipeline.conftest import sentence


class Embedder:
    """The task over the tiny checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self.model = GPT2Model.from_pretrained(checkpoint)
        self.tokenizer = GPT2Tokenizer.from_pretrained(checkpoint)

    def __call__(self, texts: list[str | None], tokens_per_batch: int = 256, **options: Any) -> Any:
        task = EmbedTask(EmbedOptions(**options), {}, self.tokenizer, self.model.config)
        rows, result = answers(task, self.model, pa.table({"text": pa.array(texts, pa.string())}), tokens_per_batch)
        return [row["embedding"] for row in rows], result


@pytest.fixture(scope="module")
def embedder(checkpoint: Path) -> Embedder:
    return Embedder(checkpoint)


@pytest.mark.parametrize("layer", [-1, 0, 1, 2, -3])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_equal_transformers_hidden_states(
    embedder: Embedder, checkpoint: Path, pooling: str, layer: int
) -> None:
    import transformers

    oracle = transformers.GPT2Model.from_pretrained(checkpoint).eval()
    texts = [sentence(seed, 1 + seed % 11) for seed in range(20)]
    found, _ = embedder(texts, pooling=pooling, layer=layer)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([embedder.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = oracle(ids, output_hidden_states=True).hidden_states[layer][0]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        assert vector == pytest.approx(expected.tolist(), abs=1e-4)


def test_normalized_embeddings_have_length_one_and_halves_are_written_as_halves(embedder: Embedder) -> None:
    (plain,), _ = embedder(["the cat sat"])
    (unit,), _ = embedder(["the cat sat"], normalize=True, dtype="float16")
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-3)
    assert unit == pytest.approx((np.array(plain) / np.linalg.norm(plain)).tolist(), abs=1e-3)
    fields = EmbedTask(EmbedOptions(dtype="float16"), {}, embedder.tokenizer, embedder.model.config).fields
    assert fields[0].type == pa.list_(pa.float16(), embedder.model.config.n_embd)


@pytest.mark.parametrize("truncation", ["end", "start", "windows"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_long_texts_are_cut_as_told(embedder: Embedder, pooling: str, truncation: str) -> None:
    text = sentence(3, 180)
    ids = embedder.tokenizer.encode_ragged([text])[0]
    context = embedder.model.config.n_positions
    pieces = {
        "end": [ids[:context]],
        "start": [ids[-context:]],
        "windows": np.array_split(ids, -(-len(ids) // context)),
    }
    states = [embedder.model(torch.from_numpy(each)[None]).last_hidden_state[0] for each in pieces[truncation]]
    expected = torch.cat(states).mean(0) if pooling == "mean" else states[-1][-1]
    (vector,), result = embedder([text], pooling=pooling, truncation=truncation)
    assert vector == pytest.approx(expected.tolist(), abs=1e-4)
    assert result.figures["windowed" if truncation == "windows" else "truncated"] == 1


def test_nulls_are_errors_and_an_empty_text_has_no_embedding(embedder: Embedder) -> None:
    found, result = embedder(["", None, "cat"])
    assert (found[0], found[1], result.errors) == (None, None, {1: "text is null"})
    assert len(found[2]) == embedder.model.config.n_embd


def test_a_layer_that_is_not_there_is_refused(embedder: Embedder) -> None:
    with pytest.raises(JobError, match=r"embed\.layer 3: the model has 2 blocks and so the hidden states -3 to 2"):
        embedder(["x"], layer=3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), min_size=1, max_size=10),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
    st.sampled_from(["mean", "last"]),
)
def test_a_rows_embedding_does_not_depend_on_the_batch_or_the_order(
    embedder: Embedder, texts: list[str], budget: int, shuffle: random.Random, pooling: str
) -> None:
    order = list(range(len(texts)))
    shuffle.shuffle(order)
    together, _ = embedder([texts[each] for each in order], budget, pooling=pooling)
    for place, row in enumerate(order):
        (alone,), _ = embedder([texts[row]], pooling=pooling)
        assert (alone is None) == (together[place] is None)
        if alone is not None:
            assert together[place] == pytest.approx(alone, rel=1e-5, abs=1e-5)
