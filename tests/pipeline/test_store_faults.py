"""Stores that refuse or break off: waited for where that helps, named where not, and nothing half-written shown."""

import errno
import io
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.errors import OutputRefused, SourceError, StoreError
from pipeline.lease import Lease
from pipeline.locations import Location, locate
from pipeline.plan import Part
from pipeline.retries import Backoff, is_transient, resumed
from pipeline.sources.parquet import ParquetSource
from pipeline.store import Store
from tests.pipeline.faulty_s3 import TRANSIENT, FaultyS3, Kind
from tests.pipeline.test_store import SCHEMA, commit, footer, make_plan, table


@pytest.fixture(scope="module")
def served() -> Iterator[FaultyS3]:
    with FaultyS3(seed=1, delay_seconds=0.01) as server:
        yield server


@pytest.fixture
def s3(served: FaultyS3) -> Iterator[FaultyS3]:
    yield served
    served.calm()


def store_on(s3: FaultyS3, path: str, backoff: Backoff) -> Store:
    store = Store(locate(s3.uri(path), "output.path"), backoff)
    store.create()
    return store


def never(seconds: float) -> None:
    raise AssertionError(f"waited {seconds} s for what never goes away")


class Flaky(fs.FSSpecHandler):  # type: ignore[misc]
    """A file system in memory whose next calls raise `errors`, one each."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__(fsspec.filesystem("memory"))
        self.errors = errors

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def get_file_info(self, paths: list[str]) -> Any:
        self._fail()
        return super().get_file_info(paths)

    def open_input_file(self, path: str) -> Any:
        self._fail()
        return super().open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self._fail()
        return super().open_output_stream(path, metadata)


def flaky_store(errors: list[Exception], **backoff: Any) -> Store:
    return Store(Location(fs.PyFileSystem(Flaky(errors)), "/flaky", False, "memory"), Backoff(**backoff))


def test_a_store_that_fails_for_a_while_is_waited_for_ever_longer() -> None:
    waits: list[float] = []
    errors: list[Exception] = [OSError(errno.EIO, "torn"), TimeoutError(), ConnectionResetError(), OSError("SlowDown")]
    store = flaky_store(errors, wait=waits.append)
    store.write_record("a.json", {"a": 1})
    assert store.read_record("a.json") == {"a": 1}
    assert len(waits) == 4
    assert all(0 <= wait <= 2**turn for turn, wait in enumerate(waits))


def test_after_five_tries_the_error_names_place_and_remedy() -> None:
    waits: list[float] = []
    store = flaky_store([OSError(errno.ESTALE, "stale handle")] * 9, wait=waits.append)
    with pytest.raises(StoreError, match=r"memory:///flaky/_pipeline/a\.json .*the same command goes on.*stale handle"):
        store.write_record("a.json", {})
    assert len(waits) == 4


def test_no_try_begins_after_half_a_minute() -> None:
    times = iter([0.0, 31.0])
    store = flaky_store([TimeoutError("slow")] * 9, wait=never, clock=lambda: next(times))
    with pytest.raises(StoreError, match="slow"):
        store.write_record("a.json", {})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT])
def test_what_never_goes_away_fails_at_once_and_says_what_to_do(number: int) -> None:
    store = flaky_store([OSError(number, os.strerror(number))], wait=never)
    with pytest.raises(StoreError, match=r"can't be written: .+: .+; then the same command goes on \(.*Errno"):
        store.write_record("a.json", {})


def content(kind: Kind) -> dict[str, str]:
    """Longer than the answer that tells of an error: that is read into the same buffer, and else pyarrow gives up."""
    return {"kind": kind, "padding": "." * 1000}


def test_every_transient_fault_of_an_object_store_is_ridden_out(s3: FaultyS3) -> None:
    """Each lasts until pyarrow, after 6 s, has given up; all at once, to take no longer."""
    kinds: list[Kind] = [kind for kind in TRANSIENT if kind != "delay"]
    calm = store_on(s3, "many", Backoff(wait=never))
    jobs = [(name, kind) for name in ("write", "read") for kind in kinds]
    for kind in kinds:
        calm.write_record(f"read-{kind}.json", content(kind))
        s3.inject(kinds=(kind,), method="PUT", path=f"write-{kind}")
        s3.inject(kinds=(kind,), method="GET", path=f"read-{kind}")
    all_failed = threading.Barrier(len(jobs), action=s3.calm)

    def ride_out(job: tuple[str, Kind]) -> bool:
        store = Store(calm.folder, Backoff(wait=lambda _: all_failed.wait(60)))
        name = "-".join(job) + ".json"
        if job[0] == "write":
            store.write_record(name, content(job[1]))
        return store.read_record(name) == content(job[1])

    with ThreadPoolExecutor(len(jobs)) as pool:
        assert all(pool.map(ride_out, jobs))
    assert {each.fault for each in s3.faults} == set(kinds)


@pytest.mark.parametrize(("kind", "told"), [("403", "permit these credentials"), ("404", "there is no such bucket")])
def test_a_store_that_refuses_for_good_is_asked_once(s3: FaultyS3, kind: Kind, told: str) -> None:
    store = store_on(s3, kind, Backoff(wait=never))
    s3.inject(kinds=(kind,), method="PUT", path="a.json")
    with pytest.raises(StoreError, match=rf"s3://bucket/{kind}/_pipeline/a\.json can't be written: .*{told}") as failed:
        store.write_record("a.json", {})
    assert "user:key" not in str(failed.value)
    assert len([each for each in s3.faults if each.path.startswith(f"/bucket/{kind}/")]) == 1
    assert store.read_record("a.json") is None
    assert s3.unfinished_uploads() == []


def test_an_output_that_may_not_be_read_is_refused_before_anything_starts(s3: FaultyS3) -> None:
    store = Store(locate(s3.uri("secret"), "output.path"), Backoff(wait=never))
    s3.inject(kinds=("403",), path="secret")
    with pytest.raises(OutputRefused, match="permit these credentials"):
        store.opened(make_plan())


def test_a_store_that_does_not_answer_is_not_taken_for_a_torn_part() -> None:
    waits: list[float] = []
    errors: list[Exception] = []
    store, plan = flaky_store(errors, wait=waits.append), make_plan()
    part = commit_one(store, plan)
    errors += [TimeoutError("silence")] * 5
    with pytest.raises(StoreError, match=r"can't be read: .*the same command goes on.*silence") as failed:
        store.read_footer(part, plan)
    assert "move it away" not in str(failed.value)
    assert store.read_footer(part, plan).rows == 100


def big_table() -> pa.Table:
    """12 MB that do not shrink, so that they are uploaded in pieces."""
    texts = [random.Random(row).randbytes(120_000).hex() for row in range(100)]
    return pa.table({"id": range(100), "error": texts}, schema=SCHEMA)


def test_an_upload_that_breaks_off_in_a_later_piece_shows_nothing_and_can_be_repeated(s3: FaultyS3) -> None:
    store, plan = store_on(s3, "pieces", Backoff(wait=never)), make_plan()
    part = next(iter(plan.parts()))
    s3.inject(kinds=("403",), method="PUT", path=r"pieces/part.*partNumber=2")

    def attempt() -> None:
        with store.stage(part, SCHEMA) as staged:
            staged.write(big_table())
            staged.commit(footer(plan, part, 100))

    with pytest.raises(StoreError, match=r"s3://bucket/pieces/part-00000-.*access denied"):
        attempt()
    assert list(store.committed(plan)) == []
    s3.calm()
    attempt()
    assert [part.name for part, _ in store.committed(plan)] == [part.name]


class HalfWritten(Flaky):
    """Keeps what came before an error, as a stream of fsspec's that is closed may."""

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        with fsspec.filesystem("memory").open(path, "wb") as file:
            file.write(b"half")
        raise OSError(errno.EACCES, "closed in your face")


def test_what_a_failed_upload_left_is_taken_away() -> None:
    store, plan = Store(Location(fs.PyFileSystem(HalfWritten([])), "/half", False, "memory")), make_plan()
    part = next(iter(plan.parts()))
    with pytest.raises(StoreError, match="closed in your face"):
        commit(store, plan, part, 100)
    assert list(store.committed(plan)) == []


def test_a_refused_upload_leaves_the_part_that_stands_as_it_is(s3: FaultyS3) -> None:
    store, plan = store_on(s3, "standing", Backoff()), make_plan()
    part = next(iter(plan.parts()))
    commit(store, plan, part, 100)
    place = store.folder.child(part.name).path
    before = store.read_whole(place)
    s3.inject(kinds=("403",), method="PUT", path=part.name)
    with pytest.raises(StoreError, match="access denied"):
        commit(store, plan, part, 50)
    s3.calm()
    assert store.read_whole(place) == before


class CutOff(Flaky):
    """Refuses uploads, and breaks off what is read."""

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        raise OSError(errno.EACCES, "closed in your face")

    def open_input_file(self, path: str) -> Any:
        return pa.PythonFile(Short(fsspec.filesystem("memory").cat(path)), "r")


class Short(io.BytesIO):
    """Reads one byte less than there is."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size)[:-1]


def test_a_part_whose_end_is_not_read_in_full_is_not_taken_for_torn() -> None:
    plan = make_plan()
    part = next(iter(plan.parts()))
    commit(
        Store(Location(fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem("memory"))), "/cut", False, "memory")),
        plan,
        part,
        100,
    )
    place = f"/cut/{part.name}"
    before = fsspec.filesystem("memory").cat(place)
    with pytest.raises(StoreError, match="closed in your face"):
        commit(Store(Location(fs.PyFileSystem(CutOff([])), "/cut", False, "memory")), plan, part, 50)
    assert fsspec.filesystem("memory").cat(place) == before


def test_a_lease_outlives_renewals_that_fail(s3: FaultyS3) -> None:
    store = store_on(s3, "lease", Backoff())
    with Lease(store, wait=lambda _: None) as lease:
        before = store.read_record("lease.json")
        s3.inject(kinds=("403",), path=r"lease\.json", times=2)
        for _ in range(3):
            lease._renew_once(store)
            lease.check()
        assert len(s3.faults) >= 2
        assert store.read_record("lease.json") != before


def batches(errors: list[Exception], rows: list[int]) -> Callable[[int], Iterator[pa.RecordBatch]]:
    """Reads rows 0 to 9 two by two, and fails once before each of the given rows."""

    def read(start: int) -> Iterator[pa.RecordBatch]:
        for row in range(start, 10, 2):
            if row in rows:
                rows.remove(row)
                raise errors.pop()
            yield pa.record_batch({"id": range(row, row + 2)})

    return read


def test_a_reading_that_breaks_off_goes_on_where_it_was() -> None:
    waits: list[float] = []
    read = resumed(batches([TimeoutError(), OSError(errno.EIO, "torn")], [4, 8]), 2, Backoff(wait=waits.append))
    assert pa.Table.from_batches(read).column("id").to_pylist() == list(range(2, 10))
    assert len(waits) == 2


def test_input_that_no_longer_may_be_read_is_named_with_its_rows(s3: FaultyS3) -> None:
    place = locate(s3.uri("input"), "x")
    pq.write_table(table(100), f"{place.path}/a.parquet", filesystem=place.filesystem)
    source = ParquetSource(s3.uri("input"))
    (split,) = source.splits()
    s3.inject(kinds=("403",), method="GET", path=r"input/a\.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet can't be read at rows 20 to 40: access denied: permit"):
        list(source.read(split, 20, 40, ["id"]))


def test_a_damaged_file_is_not_read_again_and_again() -> None:
    assert not is_transient(pa.ArrowInvalid("Parquet magic bytes not found in footer"))
    assert not is_transient(OSError("Couldn't deserialize thrift: TProtocolException: Invalid data"))


def test_parts_of_this_run_whose_records_were_lost_are_gone_on_with(tmp_path: Path) -> None:
    store, plan = Store(locate(str(tmp_path), "output.path")), make_plan()
    commit_one(store, plan)
    for file in (tmp_path / "_pipeline").iterdir():
        file.rmdir()
    (tmp_path / "_pipeline").rmdir()
    assert not store.opened(plan)
    assert len(list(store.committed(plan))) == 1
    with pytest.raises(OutputRefused, match="no run of ours"):
        store.opened(make_plan(other=1))


def commit_one(store: Store, plan: Any) -> Part:
    store.create()
    part = next(iter(plan.parts()))
    commit(store, plan, replace(part), 100)
    return part
