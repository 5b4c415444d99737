"""output.mode=incremental: the same command does the files that have come, and leaves the parts of others alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import gpt2model
import pipeline.run
from pipeline.cli import main
from pipeline.errors import JobError, LeaseHeld, OutputRefused, PipelineError
from pipeline.finished import read_finished
from pipeline.job import Job
from pipeline.lease import Lease
from pipeline.locations import locate
from pipeline.preflight import Prepared, prepare
from pipeline.status import read_status
from pipeline.store import Store
from tests.pipeline.rounds import Rounds, put
from tests.pipeline.rounds import rounds as rounds
from tests.pipeline.rounds import without_ray as without_ray

pytestmark = pytest.mark.usefixtures("without_ray")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_new_files_are_appended_whatever_their_names_and_the_parts_that_stand_stay(rounds: Rounds) -> None:
    rounds.put("m.parquet", range(25))
    assert rounds.run().summary["new files"] == 1
    before = rounds.digests()
    rounds.put("z.parquet", range(25, 28))
    rounds.put("a.parquet", range(28, 30))
    rounds.put("none.parquet", [])
    outcome = rounds.run()
    assert (outcome.rows, outcome.exit_code) == (30, 0)
    assert (outcome.summary["new files"], outcome.summary["rows done by this command"]) == (3, 5)
    assert rounds.ids() == [*range(25), 28, 29, 25, 26, 27]
    assert rounds.untouched(before)
    assert [Path(split["name"]).stem for split in rounds.record["splits"]] == ["m", "a", "none", "z"]
    assert rounds.verify().sound
    status = read_status(str(rounds.out))
    assert (status.state, status.rows, status.rows_total) == ("finished", 30, 30)
    assert (status.parts_committed, status.parts_planned) == (5, 5)


def test_a_round_without_news_starts_no_ray_and_loads_no_model(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds.put("a.parquet", range(3))
    rounds.run()
    before, record = rounds.digests(), rounds.record

    def poison(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something was started or loaded")

    monkeypatch.setattr(pipeline.run, "connected", poison)
    monkeypatch.setattr(pipeline.run, "Driver", poison)
    monkeypatch.setattr("ray.init", poison)
    monkeypatch.setattr(gpt2model.GPT2LMHeadModel, "from_pretrained", poison)
    monkeypatch.setattr("pipeline.sources.parquet._footer", poison)
    outcome = rounds.run()
    assert (outcome.exit_code, outcome.rows, outcome.summary["rows done by this command"]) == (0, 3, 0)
    assert (rounds.digests(), rounds.record) == (before, record)
    assert "0 new files, 0 rows; 1 file done before" in capsys.readouterr().err
    monkeypatch.undo()
    assert rounds.verify().sound


def test_a_first_round_of_files_without_rows_binds_no_later_one(rounds: Rounds) -> None:
    pq.write_table(pa.table({"id": pa.nulls(0), "text": pa.array([], pa.string())}), rounds.input / "a.parquet")
    assert (rounds.run().rows, rounds.parts) == (0, [])
    assert rounds.run().rows == 0
    assert rounds.verify().sound
    assert command("plan", rounds.job_file).exit_code == 0
    rounds.put("b.parquet", range(4))
    assert rounds.run().rows == 4
    (rounds.input / "b.parquet").rename(rounds.input / "b")
    pq.write_table(pa.table({"id": pa.nulls(0), "text": pa.nulls(0)}), rounds.input / "c.parquet")
    assert rounds.run("input.vanished=keep").rows == 4
    assert rounds.verify().sound


def test_a_column_may_have_nulls_later_though_the_first_files_allow_none(rounds: Rounds) -> None:
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    pq.write_table(pa.table({"id": [0], "text": ["one"]}, schema=strict), rounds.input / "a.parquet")
    rounds.run()
    rounds.put("b.parquet", [1], [None])
    outcome = rounds.run()
    assert (outcome.rows, outcome.errors, outcome.exit_code) == (2, 1, 3)
    assert rounds.verify().sound


def test_a_new_file_with_other_columns_is_refused_though_all_earlier_ones_are_gone(rounds: Rounds) -> None:
    file = rounds.put("a.parquet", range(3))
    rounds.run()
    file.unlink()
    pq.write_table(pa.table({"id": ["x"], "text": ["y"]}), rounds.input / "b.parquet")
    with pytest.raises(JobError, match=r"b\.parquet differ: column 'id' is int64 in one and string in the other"):
        rounds.run("input.vanished=keep")


def test_plan_tells_what_a_round_would_do_and_does_not_do_it(rounds: Rounds) -> None:
    rounds.put("a.parquet", range(12))
    rounds.run()
    record = rounds.record
    for name in range(7):
        rounds.put(f"b{name}.parquet", range(12 + 20 * name, 32 + 20 * name))
    told = command("plan", rounds.job_file)
    assert told.exit_code == 0, told.output
    assert "7 new files, 140 rows; 1 file done before; 14 parts to do" in told.stdout
    assert f"new: {rounds.input}/b0.parquet, 20 rows" in told.stdout
    assert "and 2 more" in told.stdout
    assert "tokens            about" in told.stdout
    assert rounds.record == record
    verdict = rounds.verify()
    assert verdict.sound
    assert "7 new or changed files with 140 rows are not in the output yet" in str(verdict)


@pytest.fixture
def done(rounds: Rounds) -> Rounds:
    """Two rounds are done, of two files."""
    rounds.put("a.parquet", range(15))
    rounds.run()
    rounds.put("b.parquet", range(15, 30))
    rounds.run()
    return rounds


def test_a_file_that_changed_is_refused_by_name_before_anything_is_written(done: Rounds) -> None:
    record = done.record
    done.put("a.parquet", range(100, 120))
    done.put("c.parquet", range(30, 35))
    refusal = command("run", done.job_file)
    assert refusal.exit_code == 2
    for word in ("1 file changed since", "in/a.parquet", "input.changed=keep", "input.changed=redo"):
        assert word in refusal.stderr
    assert (done.ids(), done.record) == (list(range(30)), record)
    assert done.verify().sound


def test_the_rows_of_a_changed_file_are_kept_where_that_is_asked_for(
    done: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    before = done.digests()
    done.put("a.parquet", range(100, 120))
    done.put("c.parquet", range(30, 35))
    outcome = done.run("input.changed=keep")
    assert (outcome.rows, outcome.summary["changed files, rows kept"]) == (35, 1)
    assert (done.ids(), done.untouched(before)) == (list(range(35)), True)
    assert "1 file changed since, the rows that were done stay: " in capsys.readouterr().err
    assert done.verify().sound


def test_a_changed_file_is_done_again_where_that_is_asked_for(done: Rounds) -> None:
    kept = {part.name: digest for part, digest in zip(done.parts[2:], list(done.digests().values())[2:], strict=True)}
    done.put("a.parquet", range(100, 120))
    done.put("0.parquet", [30])
    assert done.run("input.changed=redo").rows == 36
    assert done.ids() == [*range(15, 30), 30, *range(100, 120)]
    assert done.untouched(kept)
    assert done.verify().sound
    status = read_status(str(done.out))
    assert (status.parts_committed, status.parts_planned, status.rows_total) == (5, 5, 36)
    done.put("a.parquet", range(200, 203))
    assert done.run("input.changed=redo").rows == 19
    assert done.ids() == [*range(15, 30), 30, *range(200, 203)]
    assert done.run().summary["rows done by this command"] == 0
    assert done.verify().sound


@pytest.mark.parametrize("moment", ["plan written", "parts removed"])
def test_doing_a_changed_file_again_survives_being_cut_off(
    done: Rounds, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class CutOff(BaseException):
        pass

    remove = Store.remove

    def cut(store: Store, parts: Any) -> None:
        if moment == "parts removed":
            remove(store, parts)
        raise CutOff

    done.put("a.parquet", range(100, 120))
    monkeypatch.setattr(Store, "remove", cut)
    with pytest.raises(CutOff):
        done.run("input.changed=redo")
    monkeypatch.setattr(Store, "remove", remove)
    left = {"plan written": [*range(15), *range(15, 30)], "parts removed": [*range(15, 30)]}
    assert done.ids() == left[moment]
    assert ("earlier state of" in str(done.verify())) == (moment == "plan written")
    assert not done.verify().sound
    assert read_status(str(done.out)).parts_committed == 2  # those of the file that did not change
    with pytest.raises(OutputRefused, match="has not finished"):
        read_finished(str(done.out))
    assert done.run().rows == 35  # what was asked for is recorded
    assert done.ids() == [*range(15, 30), *range(100, 120)]
    assert done.verify().sound


def test_a_file_that_vanished_is_refused_by_name_and_kept_where_that_is_asked_for(done: Rounds) -> None:
    before = done.digests()
    (done.input / "a.parquet").unlink()
    refusal = command("run", done.job_file)
    assert refusal.exit_code == 2
    for word in ("1 file of earlier rounds gone", "in/a.parquet", "input.vanished=keep"):
        assert word in refusal.stderr
    assert done.verify().sound
    done.put("c.parquet", range(30, 35))
    outcome = done.run("input.vanished=keep")
    assert (outcome.rows, outcome.summary["vanished files, rows kept"]) == (35, 1)
    assert (done.ids(), done.untouched(before)) == (list(range(35)), True)
    assert done.verify().sound
    for file in done.input.iterdir():
        file.unlink()
    assert done.run("input.vanished=keep").rows == 35
    assert command("plan", done.job_file, "input.vanished=keep").exit_code == 0
    assert done.verify().sound


def test_a_file_that_moved_is_not_done_twice(done: Rounds) -> None:
    shutil.move(done.input, done.input.with_name("moved"))
    moved = f"input.parquet=[{done.input.with_name('moved')}]"
    with pytest.raises(JobError, match=r"moved/a\.parquet has the name, size and time of .*in/a\.parquet, which was"):
        done.run(moved, "input.vanished=keep")
    assert done.ids() == list(range(30))


def test_rows_with_an_error_of_a_vanished_file_stay_and_the_others_are_done_again(
    rounds: Rounds, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds.put("a.parquet", range(3), ["one", None, "three"])
    assert rounds.run().errors == 1
    rounds.put("b.parquet", range(3, 6), ["one", "two", None])
    assert rounds.run().errors == 2
    (rounds.input / "a.parquet").unlink()
    rounds.put("c.parquet", range(6, 9))
    before = rounds.digests()
    outcome = rounds.run("input.vanished=keep", retry=True)
    assert (outcome.rows, outcome.errors, outcome.exit_code) == (6, 2, 3)
    assert "rows with an error of " in (told := capsys.readouterr().err)
    assert "in/a.parquet can't be done again" in told
    assert rounds.digests()[rounds.parts[0].name] == before[rounds.parts[0].name]
    assert rounds.verify().sound
    (rounds.input / "b.parquet").unlink()
    with pytest.raises(JobError, match=r"a\.parquet, .*b\.parquet can't be done again"):
        rounds.run("input.vanished=keep", retry=True)
    assert rounds.ids() == list(range(6))


def test_a_second_command_is_refused_by_the_lease_and_changes_nothing(done: Rounds) -> None:
    record = done.record
    done.put("c.parquet", range(30, 35))
    with Lease(Store(locate(str(done.out), "output.path"))):
        refusal = command("run", done.job_file)
        assert refusal.exit_code == 1
        assert "is being written by process" in refusal.stderr
        with pytest.raises(LeaseHeld):
            done.run()
        assert (done.ids(), done.record) == (list(range(30)), record)
    assert done.run().rows == 35


def test_a_round_that_another_command_did_before_the_lease_was_had_is_taken_into_account(
    done: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Prepared] = []

    def overtaken(job: Job) -> Prepared:
        prepared = prepare(job)
        looked.append(prepared)
        if len(looked) == 1:
            done.put("x.parquet", range(30, 35))
            done.run()
            done.put("c.parquet", range(35, 40))
        return prepared

    monkeypatch.setattr(pipeline.run, "prepare", overtaken)
    done.put("d.parquet", range(40, 42))
    assert done.run().rows == 42
    assert len(looked) == 3
    assert sorted(done.ids()) == list(range(42))
    assert done.verify().sound


def test_a_folder_of_one_mode_is_refused_in_the_other(done: Rounds, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match=r"begun with output\.mode=incremental and can't be gone on with as once"):
        done.run("output.mode=once")
    done.run("output.mode=once", f"output.path={tmp_path}/once")
    with pytest.raises(OutputRefused, match=r"begun with output\.mode=once .* give output\.mode=once, or a new output"):
        done.run(f"output.path={tmp_path}/once")
    done.put("c.parquet", [30])
    with pytest.raises(OutputRefused, match=r"input\.splits was .*with output\.mode=incremental it would follow"):
        done.run("output.mode=once", f"output.path={tmp_path}/once")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input.limit=5"], "input.limit=5 would not"),
        (["input.parquet=null", "input.dataset.path=json"], "input is a dataset"),
        (["output.mode=once", "input.changed=keep"], "input.changed=keep has a meaning with output.mode=incremental"),
        (["output.mode=once", "input.vanished=keep"], "input.vanished=keep has a meaning with output.mode=incremental"),
        (["input.parquet=/nowhere/at/all"], "no such file or folder"),
        ([], "no file is there, nor was one before"),
    ],
)
def test_what_does_not_go_with_growing_is_refused(rounds: Rounds, overrides: list[str], message: str) -> None:
    refusal = command("run", rounds.job_file, *overrides)
    assert refusal.exit_code == 2
    assert message in refusal.stderr
    assert not rounds.out.exists()


def test_parts_without_the_record_of_what_they_hold_are_refused(done: Rounds) -> None:
    (done.out / "_pipeline" / "plan.json").unlink()
    with pytest.raises(OutputRefused, match="and no run of ours"):
        done.run()
    assert done.ids() == list(range(30))


def test_a_folder_that_is_empty_for_now_may_be_among_several(rounds: Rounds) -> None:
    later = rounds.input.with_name("later")
    later.mkdir()
    both = f"input.parquet=[{later}/, '{rounds.input}/*.parquet']"
    rounds.put("a.parquet", range(3))
    rounds.run(both)
    put(later / "a.parquet", range(3, 6))
    assert rounds.run(both).rows == 6
    assert rounds.ids() == list(range(6))


def test_rounds_over_object_stores_are_no_different(rounds: Rounds) -> None:
    store = fsspec.filesystem("memory")
    places = ["input.parquet=[memory://growing/in]", "output.path=memory://growing/out"]

    def put_there(name: str, ids: range) -> None:
        store.put(str(rounds.put(name, ids)), f"/growing/in/{name}")

    def ids() -> list[int]:
        parts = sorted(store.glob("/growing/out/part-*"))
        return [row for part in parts for row in pq.read_table(store.open(part)).column("id").to_pylist()]

    store.mkdirs("/growing/in")
    put_there("b.parquet", range(15))
    assert rounds.run(*places).rows == 15
    put_there("a.parquet", range(15, 20))
    assert rounds.run(*places).rows == 20
    assert ids() == list(range(20))
    put_there("b.parquet", range(100, 103))
    with pytest.raises(JobError, match=r"1 file changed since earlier rounds: memory://.*/in/b\.parquet"):
        rounds.run(*places)
    assert rounds.run(*places, "input.changed=redo").rows == 8
    assert ids() == [*range(15, 20), *range(100, 103)]
    store.rm("/growing/in/a.parquet")
    assert rounds.run(*places, "input.vanished=keep").summary["rows done by this command"] == 0
    assert rounds.verify(*places).sound


def test_a_run_that_is_done_once_is_planned_and_resumed_as_ever(rounds: Rounds) -> None:
    rounds.put("a.parquet", range(15))
    rounds.run("output.mode=once")
    identity = rounds.record["identity"]
    assert identity["input"].keys() == {"columns", "limit", "splits"}
    assert identity["output"].keys() == {"columns", "rows_per_part", "prefix"}
    assert identity["input"]["splits"][0].keys() == {"name", "rows", "size", "modified_ns"}
    record = rounds.record
    for split in record["splits"]:  # as it was written before there were rounds
        del split["retired"]
    (rounds.out / "_pipeline" / "plan.json").write_text(json.dumps(record))
    rounds.parts[1].unlink()
    assert rounds.run("output.mode=once").summary["rows done by this command"] == 5
    assert (rounds.record, rounds.verify("output.mode=once").sound) == (record, True)


def test_a_file_that_is_gone_before_its_last_part_fails_by_name_and_the_others_are_done(done: Rounds) -> None:
    (done.input / "b.parquet").unlink()
    done.parts[-1].unlink()
    done.put("c.parquet", range(30, 33))
    with pytest.raises(PipelineError, match=r"(?s)1 part failed.*b\.parquet is gone before all of its rows were done"):
        done.run("input.vanished=keep")
    assert done.ids() == [*range(25), *range(30, 33)]
    done.put("a.parquet", range(100, 120))
    done.parts[0].unlink()
    with pytest.raises(PipelineError, match=r"a\.parquet changed before all of its .*or give input\.changed=redo"):
        done.run("input.vanished=keep", "input.changed=keep")
