"""A tiny random checkpoint with a tokenizer of its own, rows to run it on, and one Ray for all modules."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

WORDS = "the a cat dog sat ran on under mat house, and then. It was Very late – naïve 日本 😀 again".split()


def sentence(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved GPT-2 of 2 layers, width 32, context 64, and a byte-level vocabulary of 320."""
    import torch
    from tokenizers import ByteLevelBPETokenizer

    from gpt2model import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = ByteLevelBPETokenizer()
    lines = [sentence(seed, 12) for seed in range(200)]
    tokenizer.train_from_iterator(lines, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save_model(str(folder))
    end = tokenizer.token_to_id("<|endoftext|>")
    config = GPT2Config(
        vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=end, eos_token_id=end
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():  # larger weights than the initial ones, so that tokens differ in likelihood
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows() -> pa.Table:
    """900 rows of many lengths, some empty, some longer than the context."""
    lengths = [random.Random(seed).choice([0, 1, 3, 8, 20, 60]) for seed in range(900)]
    texts = [sentence(seed, length) for seed, length in enumerate(lengths)]
    return pa.table({"id": range(900), "text": texts, "tag": pa.array(["x", "y"] * 450).dictionary_encode()})


JobWriter = Callable[..., Path]


def job_writer(folder: Path, checkpoint: Path, rows: pa.Table) -> JobWriter:
    """Writes a score job over `rows` in two files of `folder`, and its output beside; sections given are merged in."""
    (folder / "in").mkdir()
    pq.write_table(rows.slice(0, 500), folder / "in" / "a.parquet", row_group_size=130)
    pq.write_table(rows.slice(500), folder / "in" / "b.parquet")

    def write(name: str = "job.yaml", **sections: Any) -> Path:
        job: dict[str, Any] = {
            "task": "score",
            "model": {"path": str(checkpoint)},
            "input": {"parquet": str(folder / "in")},
            "output": {"path": str(folder / "out"), "rows_per_part": 100},
            "cluster": {"cpus_per_worker": 1},
        }
        for section, content in sections.items():
            job[section] = {**job.get(section, {}), **content} if isinstance(content, dict) else content
        file = folder / name
        file.write_text(yaml.safe_dump(job, sort_keys=False))
        return file

    return write


@pytest.fixture
def write_job(tmp_path: Path, checkpoint: Path, rows: pa.Table) -> JobWriter:
    """Writes a score job over `rows`, in the test's folder."""
    return job_writer(tmp_path, checkpoint, rows)


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """One local Ray for a module; runs inside it use it and leave it."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()
