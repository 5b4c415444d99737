"""Real disks that are full or read-only, and folders that go away while a run writes into them."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.compose import load_job
from pipeline.errors import OutputRefused, PipelineError, StoreError
from pipeline.locations import locate
from pipeline.messages import PartReport
from pipeline.plan import Part
from pipeline.run import Outcome, run_job
from pipeline.store import Store
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter


def run(job: Path, *overrides: str, worker_class: type[Worker] = Worker) -> Outcome:
    return run_job(load_job(job, overrides), worker_class=worker_class)


def parts(out: Path) -> list[Path]:
    return sorted(file for file in out.iterdir() if file.name != "_pipeline") if out.exists() else []


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in parts(out)])


Remount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Remount]]:
    """A small disk of its own, and a way to change its options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, capture_output=True)

    try:
        mount("size=64k")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk is not permitted here: {error}")
    yield place, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", place], check=True)


@pytest.mark.usefixtures("ray_local")
def test_a_full_disk_ends_the_run_with_a_word_and_the_same_command_finishes_when_there_is_space(
    write_job: JobWriter, disk: tuple[Path, Remount], rows: pa.Table
) -> None:
    place, remount = disk
    out = place / "out"
    job = write_job(output={"path": str(out)})
    with pytest.raises(PipelineError, match=r"can't be written: the disk is full: free space there; then the same"):
        run(job)
    assert all(pq.read_metadata(file).num_rows == 100 for file in parts(out))
    assert list((out / "_pipeline" / "staging").iterdir()) == []
    remount("size=4m")
    assert run(job).rows == 900
    assert read(out).select(rows.column_names).equals(rows)


def test_a_record_that_finds_the_disk_full_keeps_its_old_content(disk: tuple[Path, Remount]) -> None:
    place, _ = disk
    store = Store(locate(str(place / "out"), "output.path"))
    store.create()
    store.write_record("a.json", {"a": 1})
    with pytest.raises(StoreError, match="the disk is full"):
        store.write_record("a.json", {"a": "x" * 100_000})
    assert store.read_record("a.json") == {"a": 1}
    assert sorted(file.name for file in (place / "out" / "_pipeline").iterdir()) == ["a.json", "staging"]


def test_a_read_only_disk_is_refused_before_anything_starts(write_job: JobWriter, disk: tuple[Path, Remount]) -> None:
    place, remount = disk
    remount("ro")
    with pytest.raises(OutputRefused, match=r"can't write in .*: it is mounted read-only: mount it for writing"):
        run(write_job(output={"path": str(place / "out")}))


def test_a_disk_that_becomes_read_only_is_named(disk: tuple[Path, Remount]) -> None:
    place, remount = disk
    store = Store(locate(str(place / "out"), "output.path"))
    store.create()
    remount("ro")
    with pytest.raises(StoreError, match=r"out/_pipeline/a\.json can't be written: it is mounted read-only"):
        store.write_record("a.json", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused_before_anything_starts(
    write_job: JobWriter, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputRefused, match="permission denied: give this user the rights to it"):
        run(write_job())


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("gone", ["out", "out/_pipeline"])
def test_a_folder_removed_while_the_run_goes_on_ends_it_and_the_same_command_begins_anew(
    write_job: JobWriter, tmp_path: Path, rows: pa.Table, gone: str
) -> None:
    removed = tmp_path / "removed"

    class Removing(Worker):
        def run(self, part: Part) -> PartReport:
            report = super().run(part)
            if not removed.exists():
                removed.touch()
                shutil.rmtree(tmp_path / gone)
            return report

    job = write_job()
    with pytest.raises(PipelineError, match=r"leave the output folder alone"):
        run(job, worker_class=Removing)
    assert run(job).rows == 900
    assert read(tmp_path / "out").select(rows.column_names).equals(rows)
