"""Speed of classify, ner and embed with a random 124M GPT-2, against transformers' pipelines on the same weights.

    python -m benchmarks.heads [--rounds 3] [--rows 32] [--texts WikiText-2] [--json]

Ours is the whole task, from texts to result columns; theirs is the pipeline at its best batch size, which is found
first on some of the rows: once with the texts as they are given, as ours has them, and once with texts that were sorted
by length for it. Every round measures all in turn, ours with the matrix-product rate just before and after; the table
gives medians over the rounds, and ratios taken within a round. On long rows the share is what counts.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import gpt2model
from benchmarks.machine import MatrixRate, beside_the_rate, describe, median, print_table, seconds
from benchmarks.score import SHARED, wikitext_rows
from gpt2model import GPT2Config, GPT2Tokenizer
from pipeline.batching import PackRunner
from pipeline.tasks import Task
from pipeline.tasks.classify import ClassifyOptions, ClassifyTask
from pipeline.tasks.embed import EmbedOptions, EmbedTask
from pipeline.tasks.ner import NerOptions, NerTask
from pipeline.worker import TOKENS_PER_BATCH

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
TASKS: dict[str, tuple[str, str]] = {
    "classify": ("GPT2ForSequenceClassification", "text-classification"),
    "ner": ("GPT2ForTokenClassification", "token-classification"),
    "embed": ("GPT2Model", "feature-extraction"),
}
KINDS = ("WikiText-2", "SST-2", "long rows")
BATCHES = (1, 2, 4, 8, 16)
ORDERS: dict[str, Callable[[Sequence[str]], Sequence[str]]] = {
    "as given": list,
    "sorted": lambda rows: sorted(rows, key=len),
}
Run = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows of one kind, and what a pass over them costs."""

    name: str
    rows: Sequence[str]
    lengths: Sequence[int]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def operations(self, config: GPT2Config) -> float:
        """Floating-point operations of the blocks' matrix products: 2 a weight and token, and causal attention."""
        weights = 12 * config.n_layer * config.n_embd**2
        attention = sum(2 * length**2 for length in self.lengths) * config.n_embd * config.n_layer
        return 2.0 * weights * self.tokens + attention


def texts(tokenizer: GPT2Tokenizer, rows: int) -> Iterator[Texts]:
    """WikiText-2 rows, SST-2 sentences, and WikiText-2 cut to rows of 900 tokens."""
    sentences = pq.read_table(SHARED / "sst2_dev.parquet").column("text").to_pylist()
    whole = tokenizer.encode_ragged(["".join(wikitext_rows(100))])[0]
    long = [tokenizer.decode(whole[start : start + 900].tolist()) for start in range(0, 900 * max(2, rows // 8), 900)]
    for name, chosen in zip(KINDS, (wikitext_rows(rows), sentences[: 3 * rows], long), strict=True):
        ragged = tokenizer.encode_ragged(chosen)
        yield Texts(name, chosen, [len(ids) for ids in ragged])


def our_task(name: str, tokenizer: GPT2Tokenizer, config: GPT2Config) -> Task:
    """The task with its default options."""
    if name == "classify":
        return ClassifyTask(ClassifyOptions(), {}, tokenizer, config)
    if name == "ner":
        return NerTask(NerOptions(), {}, tokenizer, config)
    return EmbedTask(EmbedOptions(), {}, tokenizer, config)


def ours(name: str, folder: str, threads: int) -> Run:
    """The task's three steps, a pack a thread, as a worker runs them."""
    model = getattr(gpt2model, TASKS[name][0]).from_pretrained(folder).prepack()
    task = our_task(name, GPT2Tokenizer.from_pretrained(folder), model.config)
    runner = PackRunner(TOKENS_PER_BATCH["cpu"], threads)

    def run(rows: Sequence[str]) -> object:
        torch.set_num_threads(1)
        prepared = task.prepare(pa.table({"text": list(rows)}))
        result = task.finish(prepared, task.compute(model, prepared, runner))
        torch.set_num_threads(threads)
        return result

    return run


def theirs(name: str, folder: str) -> Callable[[Sequence[str], int], object]:
    """transformers' pipeline, called with rows and a batch size."""
    import transformers

    options: dict[str, Any] = {"aggregation_strategy": "simple"} if name == "ner" else {}
    if name == "embed":
        options = {"return_tensors": True, "tokenize_kwargs": {"truncation": True}}
    pipe = transformers.pipeline(TASKS[name][1], model=folder, tokenizer=folder, device="cpu", **options)
    pipe.tokenizer.pad_token = pipe.tokenizer.eos_token
    pipe.model.config.pad_token_id = pipe.tokenizer.eos_token_id
    calling = {"truncation": True} if name == "classify" else {}

    def run(rows: Sequence[str], batch: int) -> object:
        return list(pipe(list(rows), batch_size=batch, **calling))

    return run


def quickest(pipe: Callable[[Sequence[str], int], object], rows: Sequence[str]) -> int:
    """The batch size that suits a pipeline best; the first call is slower than others."""
    pipe(rows[:1], 1)
    return min(BATCHES, key=lambda batch: seconds(lambda: pipe(rows, batch)))


def compare(
    name: str, folder: str, work: Texts, config: GPT2Config, rounds: int, threads: int, searched: int
) -> dict[str, Any]:
    """Medians over the rounds of both engines, theirs at its best batch size for either order."""
    pipe, run = theirs(name, folder), ours(name, folder, threads)
    ordered = {order: arrange(work.rows) for order, arrange in ORDERS.items()}
    best = {order: quickest(pipe, arrange(work.rows[:searched])) for order, arrange in ORDERS.items()}
    run(work.rows)
    own: list[tuple[float, MatrixRate]] = []
    other: dict[str, list[float]] = {order: [] for order in ORDERS}
    for _ in range(rounds):
        own.append(beside_the_rate(lambda: run(work.rows)))
        for order, rows in ordered.items():
            other[order].append(seconds(partial(pipe, rows, best[order])))
    operations = work.operations(config)
    found: dict[str, Any] = {
        "tokens/s": median(work.tokens / took for took, _ in own),
        "share": median(operations / took / rate.torch_mm for took, rate in own),
        "of the fastest": median(operations / took / rate.fastest for took, rate in own),
    }
    for order, took in other.items():
        found[f"theirs {order}"] = median(work.tokens / each for each in took)
        found[f"batch {order}"] = best[order]
        found[f"ratio {order}"] = median(each / mine for each, (mine, _) in zip(took, own, strict=True))
    return found


def save(name: str, folder: Path, tokenizer: GPT2Tokenizer) -> GPT2Config:
    """A random 124M model of the task's class."""
    torch.manual_seed(0)
    model = getattr(gpt2model, TASKS[name][0])(GPT2Config(id2label=dict(enumerate(LABELS))))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config: GPT2Config = model.config
    return config


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=min(2, os.cpu_count() or 1), show_default=True)
@click.option("--rows", default=32, show_default=True, help="WikiText-2 rows; SST-2 has three times as many.")
@click.option("--searched", default=32, show_default=True, help="Rows on which the pipelines' best batches are found.")
@click.option("--texts", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, threads: int, rows: int, searched: int, kinds: Sequence[str], as_json: bool) -> None:
    """Measure, and print a table or one JSON object."""
    torch.set_num_threads(threads)
    tokenizer = GPT2Tokenizer.from_pretrained(SHARED / "gpt2-tokenizer")
    machine = describe(["torch", "transformers", "tokenizers"])
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in TASKS:
            folder = Path(temporary) / name
            config = save(name, folder, tokenizer)
            for work in texts(tokenizer, rows):
                if work.name in kinds:
                    found[f"{name}, {work.name}"] = compare(name, str(folder), work, config, rounds, threads, searched)
    if as_json:
        print(json.dumps({"machine": machine, **found}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    rows_shown = [
        {
            "task": name,
            **{key: f"{value:,.2f}" if isinstance(value, float) else str(value) for key, value in own.items()},
        }
        for name, own in found.items()
    ]
    print_table("share is of torch.mm's rate in the same round, then of the fastest product's", rows_shown)


if __name__ == "__main__":
    main()
