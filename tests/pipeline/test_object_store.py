"""Input and output on an object store: a real S3 API on the loopback."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.compose import load_job
from pipeline.errors import LeaseHeld, OutputRefused
from pipeline.index_files import read_index
from pipeline.lease import Lease
from pipeline.locations import locate, redact
from pipeline.preflight import prepare
from pipeline.run import Outcome, run_job
from pipeline.status import read_status
from pipeline.store import Store
from pipeline.verify import verify
from tests.pipeline.buckets import SECRET
from tests.pipeline.buckets import bucket as bucket
from tests.pipeline.conftest import JobWriter
from tests.pipeline.faulty_s3 import FaultyS3


def run(job: Path, *overrides: str) -> Outcome:
    return run_job(load_job(job, overrides))


@pytest.mark.usefixtures("ray_local")
def test_a_run_from_s3_to_s3_is_whole_resumable_and_keeps_its_secrets(
    write_job: JobWriter, bucket: str, rows: pa.Table, tmp_path: Path
) -> None:
    source, target = locate(bucket.format("/in"), "x"), locate(bucket.format("/out"), "x")
    pq.write_table(rows.slice(0, 450), f"{source.path}/a.parquet", filesystem=source.filesystem)
    pq.write_table(rows.slice(450), f"{source.path}/b.parquet", filesystem=source.filesystem)
    job = write_job(input={"parquet": bucket.format("/in")}, output={"path": bucket.format("/out")})
    outcome = run(job)
    assert outcome.summary["output"] == "s3://bucket/out"
    table = ds.dataset(target.path, filesystem=target.filesystem, format="parquet").to_table()
    assert table.select(rows.column_names).equals(rows)
    assert run(job).summary["rows done by this command"] == 0
    parts = target.filesystem.get_file_info(fs.FileSelector(target.path))
    target.filesystem.delete_file(next(info.path for info in parts if info.base_name.startswith("part-00003")))
    (missing,) = verify(prepare(load_job(job))).findings
    assert str(missing).startswith("s3://bucket/out/part-00003-")
    assert run(job).summary["rows done by this command"] == 100
    again = ds.dataset(target.path, filesystem=target.filesystem, format="parquet").to_table()
    assert again.equals(table)
    assert str(verify(prepare(load_job(job)))).startswith("sound: 10 of 10 parts and 900 of 900 rows are right")
    shown = read_status(bucket.format("/out"))
    assert (shown.output, shown.state, shown.parts_committed, shown.rows) == ("s3://bucket/out", "finished", 10, 900)
    prepared = prepare(load_job(job))
    known = read_index(prepared.store, prepared.plan)
    assert all(known.counted(prepared.store.listing()[part.name]) for part in prepared.plan.parts())
    for info in target.filesystem.get_file_info(fs.FileSelector(target.path, recursive=True)):
        if info.type == fs.FileType.File:
            assert SECRET.encode() not in target.filesystem.open_input_file(info.path).read()
    with pytest.raises(OutputRefused, match=r"score\.window was 'rolling' and is 'sliding'") as refusal:
        run(job, "score.window=sliding")
    assert SECRET not in str(refusal.value)


@pytest.mark.usefixtures("ray_local")
def test_a_glob_on_s3_reads_what_it_matches(write_job: JobWriter, bucket: str, rows: pa.Table, tmp_path: Path) -> None:
    place = locate(bucket.format("/glob"), "x")
    for name in ("x1.parquet", "x2.parquet", "y.parquet"):
        pq.write_table(rows.slice(0, 10), f"{place.path}/{name}", filesystem=place.filesystem)
    outcome = run(write_job(input={"parquet": bucket.format("/glob/x*.parquet")}))
    assert outcome.rows == 20


@pytest.mark.usefixtures("ray_local")
def test_a_run_over_a_store_that_fails_one_request_in_twenty_gives_the_same_output(
    write_job: JobWriter, rows: pa.Table, tmp_path: Path
) -> None:
    calm = run(write_job(output={"path": str(tmp_path / "calm")}))
    with FaultyS3(seed=3, delay_seconds=0.05) as s3:
        source, target = locate(s3.uri("faulty/in"), "x"), locate(s3.uri("faulty/out"), "x")
        for name in ("a", "b"):
            table = pq.read_table(tmp_path / "in" / f"{name}.parquet")
            pq.write_table(table, f"{source.path}/{name}.parquet", filesystem=source.filesystem)
        s3.inject(probability=0.05)
        outcome = run(write_job(input={"parquet": s3.uri("faulty/in")}, output={"path": s3.uri("faulty/out")}))
        s3.calm()
        assert len(s3.faults) > 3
        table = ds.dataset(target.path, filesystem=target.filesystem, format="parquet").to_table()
        assert not [key for key in s3.unfinished_uploads() if key.startswith("faulty/")]
    assert table.equals(ds.dataset(tmp_path / "calm", format="parquet").to_table())
    assert (outcome.rows, outcome.errors) == (calm.rows, calm.errors)


def test_of_two_drivers_that_both_saw_no_lease_on_an_object_store_the_last_writer_works(bucket: str) -> None:
    both_looked = threading.Barrier(2)
    first_settles, last_wrote = threading.Event(), threading.Event()

    class Blind(Store):
        """Sees the lease only once both have looked."""

        looked = False

        def read_record(self, name: str) -> dict[str, object] | None:
            if self.looked:
                return super().read_record(name)
            self.looked = True
            both_looked.wait(60)
            return None

    class Slow(Blind):
        """Writes once the other has written."""

        def write_record(self, name: str, content: Mapping[str, object] | str) -> None:
            first_settles.wait(5)
            super().write_record(name, content)
            last_wrote.set()

    def settle(seconds: float) -> None:
        first_settles.set()
        last_wrote.wait(60)

    def take(lease: Lease) -> bool:
        try:
            lease._take()
        except LeaseHeld:
            return False
        return True

    folder = locate(bucket.format("/both"), "x")
    Store(folder).create()
    leases = [Lease(Blind(folder), wait=settle), Lease(Slow(folder), wait=lambda _: None)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(take, leases)) == [False, True]


def test_a_lease_on_an_object_store_keeps_a_second_driver_out(bucket: str) -> None:
    store = Store(locate(bucket.format("/lease"), "x"))
    store.create()
    with Lease(store), pytest.raises(LeaseHeld, match="being written by process"):
        Lease(store).__enter__()
    with Lease(store) as lease:
        lease.check()


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://user:secret@bucket/x?region=eu", "s3://***@bucket/x?region=eu"),
        ("s3://bucket/x?secret_key=abc&region=eu", "s3://bucket/x?secret_key=***&region=eu"),
        ("https://host/x.parquet?X-Amz-Signature=abc", "https://host/x.parquet?X-Amz-Signature=***"),
        ("/plain/path", "/plain/path"),
    ],
)
def test_secrets_are_taken_out_of_uris(uri: str, shown: str) -> None:
    assert redact(uri) == shown
