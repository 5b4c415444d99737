"""Dates and the environment in job files: one moment for a whole job, and no secret shown."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from omegaconf import OmegaConf

from pipeline import compose
from pipeline.cli import main
from pipeline.compose import load_job
from pipeline.dates import LONGEST_FORMAT, moment
from pipeline.errors import JobError
from pipeline.job import Job
from pipeline.locations import locate
from pipeline.run import resolved_job
from tests.pipeline.conftest import JobWriter

SECRET = "hunter2+Sl/ash=="


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The local time of this module's tests."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def invoke(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def refused(result: Result, *wanted: str) -> None:
    assert result.exit_code == 2, result.output
    assert all(each in result.stderr for each in wanted), result.stderr
    assert "Traceback" not in result.stderr


def line_below(job: Path, text: str) -> int:
    return job.read_text().splitlines().index(text) + 2


def dated(write_job: JobWriter, form: str) -> Path:
    return write_job(output={"path": f"out/${{now:{form}}}"})


@pytest.mark.parametrize(
    ("form", "as_of", "path"),
    [
        ("", "2026-03-01", "2026-03-01"),
        ("%Y-%m-%d", "2026-03-01", "2026-03-01"),
        ("%Y/%m/%d/%H:%M", "2026-03-01T23:59", "2026/03/01/23:59"),
        ("'%d, %B'", "2026-03-01 23:59:30", "01, March"),
        ("%F %T %z", "2026-03-01T02:00", "2026-03-01 02:00:00 +0100"),
        ("%F %z", "2026-07-01", "2026-07-01 +0200"),
        ("%F %H %z", "2026-02-28T23:00-05:00", "2026-02-28 23 -0500"),
        ("%F %H", "2026-02-28T23:00Z", "2026-02-28 23"),
        ("%G-W%V 100%%", "2026-01-01", "2026-W01 100%"),
    ],
)
def test_now_is_the_given_moment_in_the_given_format(write_job: JobWriter, form: str, as_of: str, path: str) -> None:
    assert load_job(dated(write_job, form), as_of=as_of).output.path == f"out/{path}"
    assert load_job(write_job(), [f"output.path=out/${{now:{form}}}"], as_of=as_of).output.path == f"out/{path}"


def test_without_a_date_now_is_local_time_and_one_moment_for_the_whole_job(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def passing(as_of: str | None) -> datetime:
        nonlocal asked
        asked += 1
        return moment(as_of) + timedelta(days=asked)

    monkeypatch.setattr(compose, "moment", passing)
    before = datetime.now(UTC).timestamp()
    job = write_job(input={"parquet": ["${now:%F %H:%M:%S.%f %z}"] * 3}, output={"path": "${input.parquet[1]}"})
    loaded = load_job(job, ["output.prefix=${now:%F %H:%M:%S.%f %z}"])
    assert isinstance(loaded.input.parquet, list)
    (one,) = {*loaded.input.parquet, loaded.output.path, loaded.output.prefix}
    told = datetime.strptime(one, "%Y-%m-%d %H:%M:%S.%f %z") - timedelta(days=1)
    assert before <= told.timestamp() <= datetime.now(UTC).timestamp()
    assert told.utcoffset() == datetime.now().astimezone().utcoffset()


def test_every_command_over_a_job_takes_the_date(write_job: JobWriter, tmp_path: Path) -> None:
    job = write_job(output={"path": str(tmp_path / "${now:}")})
    assert f"output            {tmp_path}/2026-03-01\n" in invoke("plan", job, "--as-of", "2026-03-01").stdout
    for command in ("verify", "retry-errors"):
        refused(invoke(command, job, "--as-of", "2026-03-01"), f"output.path {tmp_path}/2026-03-01 holds no run")
    refused(invoke("run", job, "--as-of", "2026-03-01", "output.prefix=${now:%Q}"), "holds %Q")


DATES = ["yesterday", "", "2026-13-01", "2026-02-30", "01.02.2026", "2026-03-01T25:00", "0001-01-01T00:00"]


@pytest.mark.parametrize("as_of", DATES)
def test_what_is_no_date_is_told_with_what_one_is(as_of: str) -> None:
    with pytest.raises(JobError, match=f"--as-of '{as_of}' is no date .* 2026-11-24T02:00\\+01:00"):
        moment(as_of)


@pytest.mark.parametrize("command", ["run", "plan", "verify", "retry-errors"])
def test_every_command_refuses_what_is_no_date(write_job: JobWriter, tmp_path: Path, command: str) -> None:
    refused(invoke(command, write_job(), "--as-of", "yesterday"), "--as-of 'yesterday' is no date")
    assert not (tmp_path / "out").exists()


FORMATS = [
    ("%Q", "the date format '%Q' holds %Q, which is no part of a date"),
    ("%Y-%", "the date format '%Y-%' holds %, which is no part of a date"),
    ("%-d", "holds %-, which is no part of a date"),
    ("YYYY-MM-DD", "holds no part of a date: write it as %Y-%m-%d"),
    ("%d, %B", "now takes one format, and a comma ends it: quote it, as ${now:'%d, %B'}"),
    ("%Y" * 51, f"{LONGEST_FORMAT} characters at most"),
]


@pytest.mark.parametrize(("form", "wanted"), FORMATS, ids=[form[:10] for form, _ in FORMATS])
def test_a_wrong_format_is_refused_with_key_and_place(write_job: JobWriter, form: str, wanted: str) -> None:
    job = dated(write_job, form)
    refused(invoke("plan", job), f"{job}:{line_below(job, 'output:')}: output.path: ", wanted)
    override = f"output.path=${{now:{form}}}"
    refused(invoke("plan", write_job(), override), f"override {override!r}: output.path: ", wanted)


def test_now_without_its_colon_is_refused_with_the_remedy(write_job: JobWriter) -> None:
    refused(invoke("plan", write_job(output={"path": "${now}"})), "output.path: write ${now:}", "${now:%Y-%m-%d}")


def test_hydras_own_now_is_there_again_afterwards(write_job: JobWriter) -> None:
    load_job(dated(write_job, "%Y"), as_of="1999-01-01")
    assert OmegaConf.create({"now": "${now:%Y}"}).now == str(datetime.now().year)


def test_a_format_can_not_be_grown_without_bound(write_job: JobWriter) -> None:
    grown = {f"k{each + 1}": f"${{.k{each}}}${{now:%c}}${{.k{each}}}" for each in range(40)}
    refused(invoke("plan", write_job(score={"k0": "%c", **grown})), "interpolations of other keys are too many")


def test_the_environment_is_read_with_a_default_where_it_lacks_the_name(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIDE", "32")
    monkeypatch.delenv("NO_SUCH", raising=False)
    job = write_job(score={"stride": "${oc.env:STRIDE}"}, output={"path": "${oc.env:NO_SUCH,out/mine}"})
    loaded = load_job(job, ["output.prefix=${oc.env:NO_SUCH,''}"])
    assert (loaded.score.stride, loaded.output.path, loaded.output.prefix) == (32, "out/mine", "")


def test_a_name_that_the_environment_lacks_is_refused_with_key_line_and_remedy(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    wanted = "the environment has no NO_SUCH: set it, or give a default, as ${oc.env:NO_SUCH,default}"
    job = write_job(output={"path": "${oc.env:NO_SUCH}/x"})
    refused(invoke("run", job), f"{job}:{line_below(job, 'output:')}: output.path: {wanted}")
    refused(invoke("run", write_job(), "output.path=${oc.env:NO_SUCH}"), "override 'output.path=", wanted)
    listed = write_job(input={"parquet": ["a", "${oc.env:NO_SUCH}"]})
    refused(invoke("run", listed), f"{listed}:{line_below(listed, 'input:')}: input.parquet.1: {wanted}")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("# mine\npath: ${oc.env:NO_SUCH}\n")
    grouped = write_job(model={"path": None}, defaults=["_self_", {"model": "mine"}])
    grouped.write_text(grouped.read_text().replace("model:\n  path: null\n", ""))
    refused(invoke("run", grouped, "--conf", tmp_path / "conf"), f"mine.yaml:2: model.path: {wanted}")


def loaded(job: Path, *overrides: str) -> Job:
    return load_job(job, overrides)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KEY", "AKIAKEY")
    monkeypatch.setenv("SECRET", SECRET)
    return SECRET


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://${oc.env:KEY}:${oc.env:SECRET}@bucket/x", "s3://***@bucket/x"),
        (
            "s3://bucket/x?access_key=${oc.env:KEY}&secret_key=${oc.env:SECRET}",
            "s3://bucket/x?access_key=***&secret_key=***",
        ),
        ("https://${oc.env:KEY}:${oc.env:SECRET}@h/x", "https://***@h/x"),
    ],
)
def test_a_secret_of_the_environment_is_in_no_record_of_the_job(write_job: JobWriter, uri: str, shown: str) -> None:
    for job in (loaded(write_job(output={"path": uri})), loaded(write_job(), f"output.path={uri}")):
        assert SECRET in job.output.path
        assert resolved_job(job)["output"]["path"] == shown
        assert SECRET not in yaml.safe_dump(resolved_job(job))


@pytest.mark.usefixtures("secret")
def test_a_place_with_a_secret_of_the_environment_is_named_without_it(write_job: JobWriter) -> None:
    path = "s3://${oc.env:KEY}:${oc.env:SECRET}@bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=eu"
    job = loaded(write_job(output={"path": path.replace("SECRET", "KEY")}))
    assert locate(job.output.path, "output.path").uri == "s3://bucket/x"
    for key in ("input.parquet", "output.path"):
        result = invoke("plan", write_job(), f"{key}=no{path}")
        refused(result)
        assert "hunter2" not in result.output
        assert "AKIAKEY" not in result.output


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("value", ["${${oc.env:SECRET}}", "${now:${oc.env:SECRET}}", "${oc.decode:${.a}}"])
def test_an_interpolation_that_fails_on_a_secret_does_not_show_it(write_job: JobWriter, value: str) -> None:
    result = invoke("plan", write_job(score={"a": "[${oc.env:SECRET}", "stride": value}))
    refused(result, "score.stride", "can't be resolved")
    assert "hunter2" not in result.output


@pytest.mark.parametrize("secret", ['hun"ter2', "hun ter2", "h'un'ter2", "hunter2\n"])
@pytest.mark.parametrize("uri", ["s3://key:${oc.env:ODD}@bucket/x", "s3://bucket/x?secret_key=${.prefix}"])
def test_a_secret_that_would_end_its_uri_is_refused_and_not_shown(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch, secret: str, uri: str
) -> None:
    monkeypatch.setenv("ODD", secret)
    result = invoke("plan", write_job(output={"path": uri, "prefix": "${oc.env:ODD}"}))
    refused(result, "output.path: ", "percent-encode it where it is set")
    assert "ter2" not in result.output


def test_a_path_with_a_space_may_come_from_the_environment(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "file:///disk/my rows/a.parquet")
    assert loaded(write_job(output={"path": "${oc.env:PLACE}"})).output.path == "file:///disk/my rows/a.parquet"


@pytest.mark.parametrize("as_of", ["2026-03-01", "2026-03-02"])
def test_the_fingerprint_is_not_of_the_date_in_the_output(write_job: JobWriter, tmp_path: Path, as_of: str) -> None:
    job = write_job(output={"path": str(tmp_path / "${now:}")})
    told = invoke("plan", job, "--as-of", as_of).stdout.splitlines()[0]
    assert told == invoke("plan", job).stdout.splitlines()[0]


def test_a_moment_that_the_clock_skipped_is_on_its_date() -> None:
    assert moment("2026-03-29T02:30").date() == datetime(2026, 3, 29).date()
    with pytest.raises(JobError, match="is no date"):
        moment("9999-99-99")
