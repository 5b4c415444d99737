"""Generation speed of a random 124M GPT-2, against transformers and CTranslate2 on the same weights, in one run.

    python -m benchmarks.generate [--prompts 256] [--rounds 1] [--prefix 0] [--batch 8 --by limit] [--json]

Greedy, every row to a limit of its own, which is drawn lognormal from 4 to 256 as the prompts' lengths are; once with
prompts that have nothing in common and once behind a shared prefix of 200 tokens. The others run batch by batch, to the
greatest limit of a batch; their batch size, and whether rows are sorted by prompt or by limit, is what is quickest for
them on the first 32 rows (batches of 32 and 64 were slower than 16 in both), unless one of each is given. Only tokens
within a row's limit count.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import product
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import describe, median, print_table, seconds
from benchmarks.score import SHARED
from benchmarks.workloads import Generation, Order, lognormal_prompts
from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from gpt2model.generation import Engine, GenerationConfig, Request, share_prefixes
from pipeline.continuing import EngineRunner

BATCHES = (8, 16)
ORDERS: tuple[Order, ...] = ("prompt", "limit")
SLOTS = 64
CACHE_TOKENS = 64 * 384


def our_engine(model: GPT2LMHeadModel, threads: int, told: dict[str, float]) -> Callable[[Generation], object]:
    """Ours, as the generate task runs it: longest limits first, prefixes found by itself; fills in what it tells."""

    def run(work: Generation) -> object:
        engines = [Engine(model, GenerationConfig(), slots=SLOTS, cache_tokens=CACHE_TOKENS) for _ in range(threads)]
        prefixes = share_prefixes(work.prompts)
        order = sorted(range(len(work.prompts)), key=lambda row: -work.limits[row])
        requests = [Request(work.prompts[row], work.limits[row], prefix=prefixes[row]) for row in order]
        runner = EngineRunner(engines)
        with closing(runner):
            answers = runner.run(requests)
        assert [len(answer.token_ids) for answer in answers] == [work.limits[row] for row in order]
        counts = [engine.counts for engine in engines]
        told["slots in use"] = sum(each.busy_rows for each in counts) / SLOTS / sum(each.busy_steps for each in counts)
        told["cache wasted"] = 1 - sum(each.filled_steps for each in counts) / sum(each.block_steps for each in counts)
        return answers

    return run


def transformers_engine(folder: str, size: int, order: Order) -> Callable[[Generation], object]:
    """transformers' generate, padded at the left to the longest of a batch."""
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None

    def run(work: Generation) -> object:
        last = None
        for prompts, limit in work.batches(size, order):
            longest = max(map(len, prompts))
            ids = torch.stack([torch.from_numpy(np.pad(each, (longest - len(each), 0))) for each in prompts])
            mask = torch.stack([(torch.arange(longest) >= longest - len(each)).long() for each in prompts])
            last = model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=0)
            assert last.shape == (len(prompts), longest + limit)
        return last

    return run


def ctranslate2_engine(generator: Any, names: Sequence[str], size: int, order: Order) -> Callable[[Generation], object]:
    """CTranslate2 in float32, the shared prefix as its static prompt."""

    def run(work: Generation) -> object:
        results = None
        for prompts, limit in work.batches(size, order):
            tokens = [[names[each] for each in prompt[work.prefix :].tolist()] for prompt in prompts]
            static = [names[each] for each in prompts[0][: work.prefix].tolist()] or None
            results = generator.generate_batch(
                tokens,
                max_batch_size=size,
                max_length=limit,
                min_length=limit,
                sampling_topk=1,
                static_prompt=static,
                include_prompt_in_result=False,
            )
            assert all(len(each.sequences_ids[0]) == limit for each in results)
        return results

    return run


def quickest(
    make: Callable[[int, Order], Callable[[Generation], object]], work: Generation, ways: Sequence[tuple[int, Order]]
) -> tuple[int, Order]:
    """The batch size and the order, among these ways, that suit an engine best."""
    if len(ways) == 1:
        return ways[0]
    took = {}
    for size, order in ways:
        took[size, order] = seconds(partial(make(size, order), work))
        tell(work, f"batches of {size}, by {order}", took[size, order])
    return min(took, key=lambda each: took[each])


def tell(work: Generation, name: str, took: float) -> None:
    """A line on the way: the whole takes long."""
    print(f"{work.name}, {len(work.limits)} rows, {name}: {work.new_tokens / took:,.1f} new tokens/s", file=sys.stderr)


def compare(
    work: Generation, engines: dict[str, Callable[[Generation], object]], rounds: int
) -> dict[str, dict[str, float]]:
    """New tokens a second of each engine, and the time against ours, round by round."""
    took: list[dict[str, float]] = []
    for _ in range(rounds):
        took.append({})
        for name, engine in engines.items():
            took[-1][name] = seconds(partial(engine, work))
            tell(work, name, took[-1][name])
    return {
        name: {
            "new tokens/s": median(work.new_tokens / each[name] for each in took),
            "time against ours": median(each[name] / each["ours"] for each in took),
        }
        for name in engines
    }


@click.command()
@click.option("--rounds", default=1, show_default=True)
@click.option("--prompts", default=256, show_default=True)
@click.option("--threads", default=min(2, os.cpu_count() or 1), show_default=True)
@click.option("--prefix", "prefixes", multiple=True, default=(0, 200), show_default=True, help="Tokens that all share.")
@click.option("--batch", "batches", multiple=True, type=int, default=BATCHES, show_default=True)
@click.option("--by", "orders", multiple=True, type=click.Choice(ORDERS), default=ORDERS, show_default=True)
@click.option("--searched", default=32, show_default=True, help="Rows on which the others' best batches are found.")
@click.option("--json", "as_json", is_flag=True)
def main(
    rounds: int,
    prompts: int,
    threads: int,
    prefixes: Sequence[int],
    batches: Sequence[int],
    orders: Sequence[Order],
    searched: int,
    as_json: bool,
) -> None:
    """Measure, and print a table or one JSON object."""
    import ctranslate2

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {"machine": describe(["torch", "transformers", "ctranslate2"])}
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        model = GPT2LMHeadModel.from_pretrained(folder).prepack(head=True)
        tokenizer = GPT2Tokenizer.from_pretrained(SHARED / "gpt2-tokenizer")
        tokenizer.save_pretrained(folder)
        names = [str(tokenizer.convert_ids_to_tokens(each)) for each in range(model.config.vocab_size)]
        ctranslate2.converters.TransformersConverter(folder).convert(f"{folder}/ct2", quantization="float32")
        generator = ctranslate2.Generator(f"{folder}/ct2", intra_threads=threads, compute_type="float32")
        peers: dict[str, Callable[[int, Order], Callable[[Generation], object]]] = {
            "transformers": lambda size, order: transformers_engine(folder, size, order),
            "CTranslate2": lambda size, order: ctranslate2_engine(generator, names, size, order),
        }
        for prefix in prefixes:
            work, told = lognormal_prompts(prompts, prefix), dict[str, float]()
            engines = {"ours": our_engine(model, threads, told)}
            for peer, make in peers.items():
                size, order = quickest(make, work.first(searched), list(product(batches, orders)))
                engines[f"{peer}, batches of {size}, by {order}"] = make(size, order)
            result[work.name] = compare(work, engines, rounds)
            result[work.name]["ours"].update(told)
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in result.pop("machine").items()))
    for name, figures in result.items():
        rows = [
            {"engine": engine, **{key: f"{found.get(key, float('nan')):,.2f}" for key in figures["ours"]}}
            for engine, found in figures.items()
        ]
        print_table(name, rows)


if __name__ == "__main__":
    main()
