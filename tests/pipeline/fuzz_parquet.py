"""Damages Parquet files and reads them as a run does; a process of its own, since a reader in C++ may die of them.

`python -m tests.pipeline.fuzz_parquet FOLDER SEED FIRST STOP` prints a line before a case and one after it.
"""

import io
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError, SourceError
from pipeline.job import Job
from pipeline.plan import PlannedStep, make_plan
from pipeline.sources.parquet import ParquetSource
from pipeline.tasks.rows import Holds

ROWS = 60
TASK: Any = SimpleNamespace(inputs={"text": Holds.TEXT}, fields=(pa.field("score", pa.float64()),))


def table() -> pa.Table:
    texts = [None if row % 7 == 3 else f"row {row} " + "naïve 😀" * (row % 5) for row in range(ROWS)]
    return pa.table(
        {
            "text": texts,
            "id": range(ROWS),
            "tag": pa.array(["x", "y", None] * (ROWS // 3)).dictionary_encode(),
            "list": [[row] * (row % 3) for row in range(ROWS)],
            "struct": [{"a": row, "b": [str(row)]} for row in range(ROWS)],
            "map": pa.array([[("k", row)] for row in range(ROWS)], pa.map_(pa.string(), pa.int64())),
            "when": pa.array(range(ROWS), pa.timestamp("us", "UTC")),
            "big": pa.array(range(ROWS), pa.int64()).cast(pa.decimal128(30, 2)),
            "flag": [row % 2 == 0 for row in range(ROWS)],
            "half": pa.array(range(ROWS), pa.int8()).cast(pa.float16()),
            "bytes": pa.array([b"abcd"] * ROWS, pa.binary(4)),
            "uuid": pa.array([bytes(16)] * ROWS, pa.uuid()),
        }
    )


def seeds() -> list[bytes]:
    """The same rows as many kinds of file."""
    kinds: list[dict[str, Any]] = [
        {"compression": "snappy"},
        {"compression": "none", "use_dictionary": False},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"compression": "gzip", "row_group_size": 17},
        {"compression": "lz4", "write_page_checksum": True},
        {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "row_group_size": 17},
        {"compression": "brotli", "store_schema": False, "write_page_index": True},
    ]
    return [written(**kind) for kind in kinds]


def written(**options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(), sink, **options)
    return sink.getvalue()


def damaged(chance: random.Random, content: bytes, other: bytes) -> bytes:
    """`content` flipped, cut, filled, shifted, or joined to another file."""
    data = bytearray(content)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    match chance.randrange(8):
        case 0:
            return bytes(data[: chance.randrange(len(data))])
        case 1:
            return bytes(data[: chance.randrange(len(data))]) + other[chance.randrange(len(other)) :]
        case 2:
            start = chance.randrange(len(data))
            data[start : start + chance.randrange(1, 64)] = bytes(chance.randrange(1, 64))
        case 3:
            return bytes(chance.randrange(256) for _ in range(chance.randrange(200)))
        case 4 | 5:
            for _ in range(chance.choice([1, 1, 1, 4])):
                data[chance.randrange(footer, len(data))] ^= 1 << chance.randrange(8)
        case _:
            for _ in range(chance.choice([1, 1, 1, 4, 40])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def outcome(file: Path, whole: pa.Table) -> str:
    """`refused`, `failed`, `equal`, or `other` values that nothing betrays; anything else is raised."""
    source = ParquetSource(str(file))
    job = Job.model_validate(
        {"task": "score", "model": {"path": "m"}, "input": {"parquet": str(file)}, "output": {"path": "o"}}
    )
    try:
        plan = make_plan(job, source, [PlannedStep(job.all_steps[0], TASK, {})])
        parts = list(plan.parts())
    except JobError:
        return "refused"
    try:
        tables = []
        for part in parts:
            batches = list(source.read(part.split, part.start, part.stop, plan.input_columns))
            assert sum(batch.num_rows for batch in batches) == part.stop - part.start
            tables += batches
    except SourceError:
        return "failed"
    if not tables:
        return "equal" if whole.num_rows == 0 else "other"
    found = pa.Table.from_batches(tables)
    pq.write_table(found, io.BytesIO())  # what a worker does with it
    return "equal" if found.schema.names == whole.schema.names and found.equals(whole) else "other"


def main(folder: str, seed: str, first: str, stop: str) -> None:
    files, file = seeds(), Path(folder) / "case.parquet"
    wholes = [pq.read_table(io.BytesIO(each)) for each in files]
    for case in range(int(first), int(stop)):
        chance = random.Random(f"{seed} {case}")
        which = chance.randrange(len(files))
        file.write_bytes(damaged(chance, files[which], chance.choice(files)))
        print(f"case {case}", flush=True)
        print(outcome(file, wholes[which]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
