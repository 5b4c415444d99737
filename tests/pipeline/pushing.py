"""Finished runs to push, made without a model, and what the command says of them."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import yaml
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.locations import locate
from pipeline.plan import Plan
from pipeline.store import Store
from tests.pipeline.test_store import footer, make_plan

SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string()), ("a|b", pa.list_(pa.float32())), ("error", pa.string())])
JOB = {
    "task": "score",
    "model": {"path": "/home/anna/models/tiny", "quantization": "none"},
    "input": {"parquet": ["/home/anna/rows/a.parquet", "s3://***@bucket/b.parquet"]},
    "output": {"path": "/home/anna/out"},
    "score": {"stride": 32},
    "generate": {"template": "{text}"},
}


def table(start: int, rows: int, seed: int) -> pa.Table:
    made = random.Random(f"{seed} {start}")
    texts = ["".join(made.choices("abcdefghijklmnopqrstuvwxyz ", k=100)) for _ in range(rows)]
    errors = ["out of memory" if number % 100 == 7 else None for number in range(start, start + rows)]
    lists = [[float(number)] * (number % 3) for number in range(rows)]
    return pa.table([range(start, start + rows), texts, lists, errors], schema=SCHEMA)


def finish(output: str, seed: int = 0, parts: int | None = None, job: dict[str, Any] = JOB) -> Plan:
    """A run of 280 rows in four parts, four of them with an error, as it leaves its folder; the first parts of it."""
    store, plan = Store(locate(output, "output.path")), replace(make_plan(seed=seed), schema=SCHEMA)
    store.create()
    store.write_record("plan.json", plan.to_json())
    store.write_record("job.yaml", yaml.safe_dump(job, sort_keys=False))
    for number, part in enumerate(list(plan.parts())[:parts]):
        rows = table(number * 100, part.stop - part.start, seed)
        errors = rows.num_rows - rows.column("error").null_count
        with store.stage(part, SCHEMA) as staged:
            staged.write(rows)
            staged.commit(replace(footer(plan, part, rows.num_rows), errors=errors, model="tiny", revision="abc123"))
    if parts is None:
        figures = {"rows": 280, "rows with an error": 4, "perplexity": 12.5, "tokens a second": 1000.0}
        store.write_record("summary.json", {**figures, "output": output, "rows done by this command": 280})
    return plan


def push(out: str, *arguments: object, repo: str = "anna/scores") -> Result:
    return CliRunner().invoke(main, ["push", out, "--repo", repo, *map(str, arguments)])


def pushed(out: str, *arguments: object, repo: str = "anna/scores") -> Result:
    done = push(out, *arguments, repo=repo)
    assert done.exit_code == 0, done.output
    return done


def refused(done: Result, code: int, words: Sequence[str]) -> None:
    assert done.exit_code == code, done.output
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.output


def load(path: str, tmp_path: Path, **options: Any) -> pa.Table:
    rows = datasets.load_dataset(path, split="train", cache_dir=str(tmp_path / "arrow"), **options)
    return rows.data.table.cast(SCHEMA)


def whole(seed: int = 0) -> pa.Table:
    sizes = {0: 100, 100: 100, 200: 50, 300: 30}
    return pa.concat_tables([table(start, rows, seed) for start, rows in sizes.items()])


def metadata(card: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return content


def parts_in(folder: Path) -> dict[str, bytes]:
    return {f"data/{file.name}": file.read_bytes() for file in sorted(folder.glob("part-*"))}
