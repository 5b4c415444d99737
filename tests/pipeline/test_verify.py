"""`pipeline verify`: a folder as the run left it is sound, and no damage to one of its files goes unseen."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.compose import load_job
from pipeline.lease import Lease
from pipeline.plan import Part
from pipeline.preflight import Prepared, prepare
from pipeline.store import Footer, footer_of
from pipeline.verify import verify
from pipeline.worker import Worker


def write_out(job: Path, *overrides: str) -> Prepared:
    """Do a job's parts in this process, as a worker does."""
    prepared = prepare(load_job(job, overrides))
    store, plan = prepared.store, prepared.plan
    store.create()
    store.write_record("plan.json", plan.to_json())
    worker = Worker(prepared.spec)
    worker.start()
    for first in plan.parts():
        part: Part | None = first
        while part is not None:
            part = plan.following(part, worker.run(part).rows)
    return prepared


@dataclass(frozen=True)
class Sound:
    """A job and the folder that it gave."""

    job: Path
    out: Path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, rows: pa.Table) -> Sound:
    """Four parts of 60 rows, a few of them with an error; read-only for the tests."""
    folder = tmp_path_factory.mktemp("verify")
    texts = [None if row % 50 == 7 else text for row, text in enumerate(rows.column("text").to_pylist()[:230])]
    pq.write_table(rows.slice(0, 230).set_column(1, "text", pa.array(texts)), folder / "in.parquet")
    content = {
        "task": "score",
        "model": {"path": str(checkpoint)},
        "input": {"parquet": str(folder / "in.parquet")},
        "output": {"path": str(folder / "out"), "rows_per_part": 60},
        "cluster": {"cpus_per_worker": 1},
    }
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(content))
    write_out(job)
    return Sound(job, folder / "out")


@dataclass(frozen=True)
class Folder:
    """A copy to do damage to."""

    path: Path
    job: Path

    @property
    def parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*"))

    def prepared(self) -> Prepared:
        return prepare(load_job(self.job, (f"output.path={self.path}",)))

    def verify(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["verify", str(self.job), f"output.path={self.path}", *arguments])

    def commit_again(self, place: int, change: Callable[[pa.Table], pa.Table], **footer: Any) -> None:
        """Commit a part anew with a sound digest, as a defective worker would."""
        prepared = self.prepared()
        part = list(prepared.plan.parts())[place]
        held = footer_of(pq.read_metadata(self.parts[place]))
        assert held is not None
        table = change(pq.read_table(self.parts[place]))
        with prepared.store.stage(part, table.schema.remove_metadata()) as staged:
            staged.write(table)
            staged.commit(replace(held, **{"rows": table.num_rows, **footer}))


@pytest.fixture
def folder(sound: Sound, tmp_path: Path) -> Folder:
    shutil.copytree(sound.out, tmp_path / "out")
    return Folder(tmp_path / "out", sound.job)


def test_what_a_run_left_is_sound_and_stays_as_it_is(folder: Folder) -> None:
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.path.rglob("*")}
    done = folder.verify()
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("sound: 4 of 4 parts and 230 of 230 rows are right, 5 rows with an error, ")
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.path.rglob("*")} == before


def test_a_streamed_run_is_sound_and_its_missing_pieces_are_named(
    tmp_path: Path, checkpoint: Path, rows: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for shard, count in enumerate((60, 75)):  # the first fills its parts, so that an empty one ends it
        lines = [json.dumps(row) for row in rows.slice(100 * shard, count).to_pylist()]
        (tmp_path / f"s{shard}.jsonl").write_text("\n".join(lines))
    content = {
        "task": "score",
        "model": {"path": str(checkpoint)},
        "input": {"dataset": {"path": "json", "streaming": True, "data_files": f"{tmp_path}/*.jsonl"}},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": 30},
        "cluster": {"cpus_per_worker": 1},
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(content))
    prepared = write_out(job)
    assert str(verify(prepared)).startswith("sound: 6 parts and 135 rows are right, 0 rows with an error")
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert [part.name[:16] for part in parts[2:4]] == ["part-00000-00002", "part-00001-00000"]
    parts[2].unlink()
    parts[4].unlink()
    assert [(Path(found.path), found.what[:20]) for found in verify(prepared).findings] == [
        (parts[2], "is missing (json:tra"),
        (parts[4], "is missing (json:tra"),
        (parts[5], "a part of this run, "),
    ]


def flip(file: Path, place: int) -> None:
    """Turn one bit over."""
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write the rows anew, changed, with all metadata kept."""
    held = pq.read_metadata(file).metadata
    table = change(pq.read_table(file))
    with pq.ParquetWriter(file, table.schema.remove_metadata(), compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({b"pipeline": held[b"pipeline"]})


def edited(table: pa.Table) -> pa.Table:
    at = table.column_names.index("loglikelihood")
    values = table.column(at).to_pylist()
    return table.set_column(at, table.schema.field(at), pa.array([-1.0, *values[1:]], pa.float64()))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def another_run(folder: Folder) -> Path:
    prepared = prepare(load_job(folder.job, ("score.stride=8", f"output.path={folder.path}/../other")))
    prepared.store.create()
    part = next(iter(prepared.plan.parts()))
    with prepared.store.stage(part, prepared.plan.schema) as staged:
        staged.commit(Footer(prepared.plan.fingerprint, part.name, part.split.name, 0, 0, 0, {}, "", None, "", "", ""))
    return folder.path / ".." / "other" / part.name


CHANGED = "was changed after it was committed"
DAMAGES: dict[str, tuple[Callable[[Folder], object], list[tuple[str, str]]]] = {
    "a missing part": (lambda at: at.parts[1].unlink(), [("part-00001", "is missing (")]),
    "a truncated part": (
        lambda at: at.parts[1].write_bytes(at.parts[1].read_bytes()[:-20]),
        [("part-00001", "is not a whole Parquet file")],
    ),
    "a part without its middle": (
        lambda at: at.parts[1].write_bytes((held := at.parts[1].read_bytes())[:200] + held[300:]),
        [("part-00001", CHANGED)],
    ),
    "a part of zero bytes": (lambda at: at.parts[1].write_bytes(b""), [("part-00001", "is empty (0 bytes)")]),
    "a bit of a data page": (lambda at: flip(at.parts[1], 150), [("part-00001", CHANGED)]),
    "a bit of the footer": (lambda at: flip(at.parts[1], -1000), [("part-00001", CHANGED)]),
    "a bit of the footer's length": (lambda at: flip(at.parts[1], -8), [("part-00001", CHANGED)]),
    "a bit of the digest": (
        lambda at: flip(at.parts[1], at.parts[1].read_bytes().rfind(b'"digest": "') + 20),
        [("part-00001", CHANGED)],
    ),
    "an edited value": (lambda at: rewrite(at.parts[1], edited), [("part-00001", CHANGED)]),
    "rows swapped": (
        lambda at: rewrite(at.parts[1], lambda table: table.take([1, 0, *range(2, table.num_rows)])),
        [("part-00001", CHANGED)],
    ),
    "a row removed": (lambda at: rewrite(at.parts[1], lambda table: table.slice(1)), [("part-00001", CHANGED)]),
    "a row doubled": (
        lambda at: rewrite(at.parts[1], lambda table: pa.concat_tables([table, table.slice(0, 1)])),
        [("part-00001", CHANGED)],
    ),
    "two parts' files swapped": (
        lambda at: swap(at.parts[1], at.parts[2]),
        [("part-00001", "holds part-00002"), ("part-00002", "holds part-00001")],
    ),
    "a copy under another part's name": (
        lambda at: shutil.copy(at.parts[1], at.parts[2]),
        [("part-00002", "holds part-00001")],
    ),
    "a copy under a free name": (
        lambda at: shutil.copy(at.parts[1], at.path / "part-00001-copy.parquet"),
        [("part-00001-copy.parquet", "a copy of part-00001")],
    ),
    "a part of another run": (
        lambda at: shutil.copy(another_run(at), at.path),
        [("part-00000", "a part of another run (")],
    ),
    "a part of another run under our name": (
        lambda at: shutil.copy(another_run(at), at.parts[0]),
        [("part-00000", "belongs to another run (")],
    ),
    "a foreign Parquet file under our name": (
        lambda at: pq.write_table(pa.table({"id": [1]}), at.parts[1]),
        [("part-00001", "carries no digest, so it was not written by a run")],
    ),
    "a foreign file": (lambda at: (at.path / "notes.txt").write_text("x"), [("notes.txt", "a foreign file")]),
    "a hidden foreign file": (lambda at: (at.path / "_SUCCESS").touch(), [("_SUCCESS", "a foreign file")]),
    "a foreign folder": (lambda at: (at.path / "more").mkdir(), [("more", "a foreign folder")]),
    "a folder under a part's name": (
        lambda at: (name := at.parts[1], name.unlink(), name.mkdir()),
        [("part-00001", "is no file")],
    ),
    "another schema": (
        lambda at: at.commit_again(1, lambda table: table.set_column(0, "id", table.column(0).cast(pa.int32()))),
        [("part-00001", "has another schema than the plan: pyarrow.Field<id: int32>, not pyarrow.Field<id: int64>")],
    ),
    "a column too few": (
        lambda at: at.commit_again(1, lambda table: table.drop_columns(["tag"])),
        [("part-00001", "has the columns id, text, loglikelihood,")],
    ),
    "a part with a row too few": (
        lambda at: at.commit_again(1, lambda table: table.slice(1)),
        [("part-00001", "holds 59 rows, and the plan wants 60")],
    ),
    "a part from another row": (
        lambda at: at.commit_again(1, lambda table: table, start=61),
        [("part-00001", "holds rows from 61 of ")],
    ),
    "errors miscounted": (
        lambda at: at.commit_again(1, lambda table: table, errors=0),
        [("part-00001", "has 1 rows with an error, and its footer says 0")],
    ),
    "a result beside an error": (
        lambda at: at.commit_again(
            1, lambda table: table.set_column(4, table.schema.field(4), pc.fill_null(table.column(4), 9))
        ),
        [("part-00001", "row 47 has an error, and a value in 'num_tokens'")],
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_named_with_its_file_and_remedy(folder: Folder, damage: str) -> None:
    plant, wanted = DAMAGES[damage]
    plant(folder)
    done = folder.verify()
    assert done.exit_code == 1, done.output
    *told, last = done.stdout.splitlines()
    for line, (name, what) in zip(told, wanted, strict=True):
        assert line.startswith(f"{folder.path}/{name}")
        assert f": {what}" in line
        assert "move it away" in line or "`pipeline run`" in line
    assert last.startswith(f"{len(wanted)} finding")


def test_the_findings_are_told_as_json(folder: Folder) -> None:
    folder.parts[2].unlink()
    done = folder.verify("--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert (told["sound"], told["parts"], told["parts_planned"]) == (False, 3, 4)
    assert (told["rows"], told["rows_planned"], told["errors"]) == (170, 230, 4)
    assert [found["what"][:10] for found in told["findings"]] == ["is missing"]


def test_what_a_killed_attempt_left_is_a_note(folder: Folder) -> None:
    (folder.path / "_pipeline" / "staging" / "part-00001.x.parquet").write_bytes(b"half")
    done = folder.verify()
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0].startswith("note: ")
    assert "1 file that killed attempts left" in done.stdout


def test_a_run_that_goes_on_is_told(folder: Folder) -> None:
    with Lease(folder.prepared().store):
        done = folder.verify()
    assert done.exit_code == 1
    assert "a run is going on (process " in done.stdout


def test_another_runs_folder_is_refused(folder: Folder) -> None:
    done = folder.verify("score.stride=8")
    assert done.exit_code == 2
    assert "holds another run: score.stride was None and is 8" in done.stderr
    assert done.stdout == ""


def test_a_folder_that_was_never_run_into_is_refused(folder: Folder) -> None:
    done = folder.verify(f"output.path={folder.path}/../none")
    assert done.exit_code == 2
    assert "holds no run yet" in done.stderr


def test_any_flipped_bit_of_a_part_is_found(folder: Folder) -> None:
    """A byte in every hundred, in turn; the file is mended after each."""
    from pipeline.verify import _check_bytes, _Unsound

    content = folder.parts[3].read_bytes()
    _check_bytes(content)
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(_Unsound):
            _check_bytes(bytes(damaged))
