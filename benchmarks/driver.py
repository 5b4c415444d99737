"""What the driver costs: memory and time a part, and the time to go on with a folder of many committed parts.

    python -m benchmarks.driver [--parts 10000 --parts 100000] [--store s3] [--json]

The workers hold no model and write one row a part, so what is measured is the driver, Ray's calls and the store.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe, print_table
from pipeline.index import Counted
from pipeline.messages import PartReport
from pipeline.plan import Part
from pipeline.worker import Worker

CHECKPOINT = Path(__file__).parent.parent / "samples" / "gpt2-tiny"
PACKAGES = ("ray", "pyarrow")


class Idle(Worker):
    """Does nothing with its parts."""

    def start(self) -> str:
        """Load nothing."""
        self.stages = []
        return "no device"

    def run(self, part: Part) -> PartReport:
        """Tell of a part that is not there."""
        return PartReport(part, Counted(1, 0, {}), 1)


class Writing(Idle):
    """Commits parts of one row, which it makes up."""

    def run(self, part: Part) -> PartReport:
        """Commit an empty result."""
        with self.spec.store.stage(part, self.spec.schema) as staged:
            staged.write(pa.Table.from_pylist([{"id": part.start}], schema=self.spec.schema))
            stamp = staged.commit(self._footer(part, 1, 0, {}))
        return PartReport(part, Counted(1, 0, {}), 1, stamp)


def measure(parts: int, out: str, source: str, worker: str) -> dict[str, float]:
    """One run in this process, which is the driver: seconds of work a part, its CPU time and its greatest memory."""
    from pipeline.job import Job
    from pipeline.run import run_job

    job = Job.model_validate(
        {
            "task": "score",
            "model": {"path": str(CHECKPOINT)},
            "input": {"parquet": source, "limit": parts},
            "output": {"path": out, "rows_per_part": 1},
            "cluster": {"cpus_per_worker": 1, "workers": {"max": 2}},
        }
    )
    began, cpu = time.perf_counter(), time.process_time()
    outcome = run_job(job, worker_class={"Idle": Idle, "Writing": Writing}[worker])
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    work = float(outcome.summary["seconds of work"] or 0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "ms a part": 1000 * work / parts, "driver CPU s": cpu, "driver MiB": peak}


def child(parts: int, out: str, source: str, worker: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.driver", "--one", str(parts), out, source, worker]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def output(kind: str, folder: Path) -> Iterator[str]:
    """A place for parts: a folder here, or a bucket of a server on this machine."""
    if kind == "disk":
        yield str(folder / "out")
        return
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    query = f"scheme=http&endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}&region=us-east-1"
    filesystem, _ = fs.FileSystem.from_uri(f"s3://user:key@bucket?{query}&allow_bucket_creation=true")
    filesystem.create_dir("bucket")
    yield f"s3://user:key@bucket/out?{query}"
    server.stop()


def rows(sizes: tuple[int, ...], kind: str) -> Iterator[dict[str, str | float]]:
    """The measurements, each a row of the table."""
    with tempfile.TemporaryDirectory() as name, output(kind, Path(name)) as out:
        source = str(Path(name) / "rows.parquet")
        pq.write_table(pa.table({"id": range(max(sizes)), "text": [""] * max(sizes)}), source)
        for parts in sizes:
            yield {"run": f"{parts:,} parts, idle", **child(parts, f"{name}/idle-{parts}", source, "Idle")}
        for parts in sizes:
            folder = _under(out, str(parts))
            yield {"run": f"{parts:,} parts, committed on {kind}", **child(parts, folder, source, "Writing")}
            yield {"run": f"{parts:,} parts, resumed by the index", **child(parts, folder, source, "Writing")}
            if kind == "disk":
                for piece in (Path(folder) / "_pipeline").glob("index*"):
                    piece.unlink()
                yield {"run": f"{parts:,} parts, resumed by the footers", **child(parts, folder, source, "Writing")}


def _under(out: str, name: str) -> str:
    """A folder under a path or a URI."""
    path, mark, query = out.partition("?")
    return f"{path}/{name}{mark}{query}"


@click.command()
@click.option("--parts", multiple=True, type=int, default=(10_000, 100_000), show_default=True)
@click.option("--store", type=click.Choice(["disk", "s3"]), default="disk", show_default=True)
@click.option("--one", nargs=4, hidden=True)
@click.option("--json", "as_json", is_flag=True)
def main(parts: tuple[int, ...], store: str, one: tuple[str, str, str, str] | None, as_json: bool) -> None:
    """Measure, and print a table or one JSON object."""
    if one is not None:
        click.echo(json.dumps(measure(int(one[0]), *one[1:])))
        return
    found: list[dict[str, str | float]] = []
    for row in rows(parts, store):
        click.echo(f"{row}", err=True)
        found.append(row)
    if as_json:
        click.echo(json.dumps({"machine": describe(PACKAGES), "rows": found}))
    else:
        click.echo(json.dumps(describe(PACKAGES)))
        texts = [
            {key: value if isinstance(value, str) else f"{value:,.2f}" for key, value in row.items()} for row in found
        ]
        print_table("the driver", texts)


if __name__ == "__main__":
    main()
