"""Scoring speed of a random 124M GPT-2, against transformers and CTranslate2 on the same weights, in one run.

    python -m benchmarks.score [--rounds 3] [--json]

Every round measures each engine in turn on the same texts, with the matrix-product rate just before and after it; the
table gives medians over the rounds, and ratios taken within a round. The last line is the whole `pipeline run`, from
the first part to the last, against the engine alone on the same rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.machine import MatrixRate, beside_the_rate, describe, median, print_table, seconds
from benchmarks.workloads import Scoring, lognormal_texts
from gpt2model import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from gpt2model.packing import pack
from gpt2model.scoring import token_logprobs
from pipeline.batching import Index, PackRunner
from pipeline.worker import TOKENS_PER_BATCH

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def wikitext_workload(tokenizer: GPT2Tokenizer, rows: int) -> Scoring:
    """The first WikiText-2 test rows that hold text."""
    ragged = tokenizer.encode_ragged(wikitext_rows(rows))
    return Scoring("WikiText-2", [np.concatenate([[tokenizer.bos_token_id], ids])[:1024] for ids in ragged])


def wikitext_rows(rows: int) -> list[str]:
    """Texts of the first `rows` rows that aren't empty."""
    texts = pq.read_table(SHARED / "wikitext2_test.parquet").column("text").to_pylist()
    return [text for text in texts if text.strip()][:rows]


def packed_engine(model: GPT2LMHeadModel, threads: int) -> Callable[[Scoring], float]:
    """Ours, as a worker runs it: sorted, packed, no padding, a pack a thread."""
    runner = PackRunner(TOKENS_PER_BATCH["cpu"], threads)

    def run(work: Scoring) -> float:
        lengths = np.array([len(ids) - 1 for ids in work.sequences])
        sums: list[float] = []

        def call(chosen: Index) -> None:
            targets = torch.from_numpy(np.concatenate([work.sequences[each][1:] for each in chosen]))
            found, _ = token_logprobs(model, pack([work.sequences[each][:-1] for each in chosen]), targets)
            sums.append(found.double().sum().item())

        torch.set_num_threads(1)
        runner.run(lengths, call)
        torch.set_num_threads(threads)
        return sum(sums)

    return run


def transformers_engine(folder: str, batch: int) -> Callable[[Scoring], float]:
    """transformers, sorted by length, padded to the longest of a batch."""
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def run(work: Scoring) -> float:
        ordered, total = sorted(work.sequences, key=len), 0.0
        for start in range(0, len(ordered), batch):
            chosen = [torch.from_numpy(ids) for ids in ordered[start : start + batch]]
            inputs = torch.nn.utils.rnn.pad_sequence([ids[:-1] for ids in chosen], batch_first=True)
            targets = torch.nn.utils.rnn.pad_sequence([ids[1:] for ids in chosen], batch_first=True, padding_value=-100)
            mask = (targets != -100).long()
            logits = model(inputs, attention_mask=mask, use_cache=False).logits
            total -= torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        return total

    return run


def ctranslate2_engine(folder: str, target: str, names: Sequence[str], threads: int) -> Callable[[Scoring], float]:
    """CTranslate2 in float32, batched by tokens; `names` are the vocabulary's tokens."""
    import ctranslate2

    converter = ctranslate2.converters.TransformersConverter(folder)
    converter.convert(target, quantization="float32", force=True)
    generator = ctranslate2.Generator(target, intra_threads=threads, compute_type="float32")

    def run(work: Scoring) -> float:
        tokens = [[names[each] for each in ids.tolist()] for ids in sorted(work.sequences, key=len)]
        results = generator.score_batch(tokens, max_batch_size=1024, batch_type="tokens")
        return sum(sum(result.log_probs) for result in results)

    return run


def compare(work: Scoring, config: GPT2Config, engines: dict[str, Callable[[Scoring], float]], rounds: int) -> Any:
    """Seconds of each engine and the matrix rate, round by round."""
    sums = {name: engine(work) for name, engine in engines.items()}  # the warm-up, and proof that all score alike
    reference = sums["ours"]
    for name, value in sums.items():
        assert abs(value - reference) < 1e-3 * abs(reference), f"{name} scores {value}, ours {reference}"
    measured: list[dict[str, tuple[float, MatrixRate]]] = []
    for _ in range(rounds):
        measured.append({name: beside_the_rate(partial(engine, work)) for name, engine in engines.items()})
    operations = work.operations(config)
    return {
        name: {
            "tokens/s": median(work.tokens / each[name][0] for each in measured),
            "share": median(operations / each[name][0] / each[name][1].torch_mm for each in measured),
            "of the fastest": median(operations / each[name][0] / each[name][1].fastest for each in measured),
            "ours is faster": median(each[name][0] / each["ours"][0] for each in measured),
        }
        for name in engines
    }


def pipeline_share(
    folder: str, texts: Sequence[str], work: Scoring, engine: Callable[[Scoring], float], scratch: Path
) -> dict[str, float]:
    """Tokens a second of a whole `pipeline run` from the first part to the last, over those of the engine around it."""
    pq.write_table(pa.table({"text": texts}), scratch / "texts.parquet")
    job = scratch / "job.yaml"
    out = scratch / "out"
    job.write_text(
        f"task: score\nmodel: {{path: {folder}}}\ninput: {{parquet: {scratch}/texts.parquet}}\n"
        f"output: {{path: {out}}}\n"
    )
    before = work.tokens / seconds(lambda: engine(work))
    subprocess.run([sys.executable, "-m", "pipeline", "run", str(job)], check=True, capture_output=True)
    after = work.tokens / seconds(lambda: engine(work))
    whole = json.loads((out / "_pipeline" / "summary.json").read_text())["tokens a second"]
    return {"pipeline tokens/s": whole, "engine tokens/s": (before + after) / 2, "share": 2 * whole / (before + after)}


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=min(2, os.cpu_count() or 1), show_default=True)
@click.option("--rows", default=64, show_default=True, help="WikiText-2 rows.")
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, threads: int, rows: int, as_json: bool) -> None:
    """Measure, and print a table or one JSON object."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = GPT2Config()
    model = GPT2LMHeadModel(config).eval()
    result: dict[str, Any] = {"machine": describe(["torch", "transformers", "ctranslate2", "ray", "tokenizers"])}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        tokenizer = GPT2Tokenizer.from_pretrained(SHARED / "gpt2-tokenizer")
        model.save_pretrained(folder)
        model = GPT2LMHeadModel.from_pretrained(folder).prepack()
        tokenizer.save_pretrained(folder)
        names = [str(tokenizer.convert_ids_to_tokens(each)) for each in range(config.vocab_size)]
        engines = {
            "ours": packed_engine(model, threads),
            "CTranslate2": ctranslate2_engine(str(folder), f"{temporary}/ct2", names, threads),
            "transformers, batch 8, sorted": transformers_engine(str(folder), 8),
        }
        for work in (lognormal_texts(config), wikitext_workload(tokenizer, rows)):
            result[work.name] = compare(work, config, engines, rounds)
        ours = engines.pop("ours")
        engines.clear()  # so that the other engines' weights leave the memory
        work = wikitext_workload(tokenizer, 12 * rows)
        result["pipeline"] = pipeline_share(str(folder), wikitext_rows(12 * rows), work, ours, Path(temporary))
    if as_json:
        print(json.dumps(result, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    for name in ("lognormal", "WikiText-2"):
        rows_shown = [
            {"engine": engine_name, **{key: f"{value:,.2f}" for key, value in figures.items()}}
            for engine_name, figures in result[name].items()
        ]
        print_table(f"{name}: share is of torch.mm's rate in the same round, then of the fastest product's", rows_shown)
    print_table("pipeline run", [{key: f"{value:,.2f}" for key, value in result["pipeline"].items()}])


if __name__ == "__main__":
    main()
