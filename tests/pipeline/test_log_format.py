"""`--log-format json` tells one object a line; the closing figures are told, written and printed alike."""

import io
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline import log, run
from pipeline.cli import main
from pipeline.cluster import _give_up
from pipeline.errors import Interrupted
from pipeline.figures import format_figure
from pipeline.messages import Counts
from pipeline.progress import Watch
from tests.pipeline.conftest import JobWriter

FIGURES = {
    *("rows", "rows_total", "errors", "tokens", "rows_per_second", "tokens_per_second", "seconds_left", "workers"),
}


@pytest.fixture(autouse=True)
def chosen() -> Iterator[None]:
    """What a test chooses is its own."""
    yield
    log.choose("auto")


def invoke(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def objects(text: str) -> list[dict[str, Any]]:
    """The lines of `text`, each of which holds what every line does."""
    told = [json.loads(line) for line in text.splitlines()]
    for each in told:
        assert {"time", "level", "event", "message"} <= each.keys()
        assert datetime.fromisoformat(each["time"]).utcoffset() == timedelta(0)
    return told


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_progress_is_told_with_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    log.choose("json")
    with Watch(280, 100) as watch:
        watch.update(Counts(), 0)
        watch.update(Counts(rows=30, errors=2, tokens=600, slots=600), 2)
        watch.warn("a worker is gone: it was killed at s3://key:hunter2@bucket/x", "worker_lost")
    first, lost, last = objects(capsys.readouterr().err)
    assert (first["event"], first["level"], first["workers"], first["seconds_left"]) == ("progress", "info", 0, None)
    assert (lost["event"], lost["level"]) == ("worker_lost", "warning")
    assert lost["message"] == "a worker is gone: it was killed at s3://***@bucket/x"
    assert last.keys() >= FIGURES
    assert (last["rows"], last["rows_total"], last["errors"], last["tokens"], last["workers"]) == (130, 280, 2, 600, 2)
    assert last["seconds_left"] == pytest.approx(150 / last["rows_per_second"])
    assert last["tokens_per_second"] == pytest.approx(20 * last["rows_per_second"])


@pytest.mark.parametrize("chosen_format", log.FORMATS)
def test_only_auto_draws_a_live_line_on_a_terminal(monkeypatch: pytest.MonkeyPatch, chosen_format: str) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    log.choose(chosen_format)
    with Watch(280, 0) as watch:
        watch.update(Counts(rows=30, tokens=600, slots=600), 2)
        watch.log("so far so good")
    shown = screen.getvalue()
    assert ("\x1b[" in shown) == (chosen_format == "auto")
    assert "so far so good" in shown
    if chosen_format == "json":
        assert [each["event"] for each in objects(shown)] == ["progress", "note", "progress"]


@pytest.mark.parametrize("command", ["run", "retry-errors"])
def test_a_refusal_is_one_object_with_the_exit_code(write_job: JobWriter, command: str) -> None:
    done = invoke(command, write_job(), "--log-format", "json", "score.strid=3")
    (told,) = objects(done.stderr)
    assert (done.exit_code, done.stdout) == (2, "")
    assert (told["level"], told["event"], told["exit_code"]) == ("error", "failed", 2)
    assert told["message"] == "override 'score.strid=3': there is no option score.strid; did you mean stride?"
    assert invoke(command, write_job(), "score.strid=3").stderr == f"Error: {told['message']}\n"


@pytest.mark.parametrize(
    ("error", "event", "message"),
    [
        (Interrupted("stopped by SIGTERM"), "interrupted", "stopped by SIGTERM"),
        (RuntimeError("no s3://u:hunter2@b/x"), "failed", "RuntimeError: no s3://***@b/x (--debug shows where)"),
    ],
)
def test_how_a_run_failed_is_one_object(
    write_job: JobWriter, monkeypatch: pytest.MonkeyPatch, error: Exception, event: str, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(run, "run_job", fail)
    done = invoke("run", write_job(), "--log-format=json")
    (told,) = objects(done.stderr)
    assert (done.exit_code, told["exit_code"]) == (1, 1)
    assert (told["level"], told["event"], told["message"]) == ("error", event, message)


def test_a_ray_that_is_gone_is_told_as_an_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.choose("json")
    monkeypatch.setattr("os._exit", lambda code: None)
    _give_up("the cluster at h:1", "head")
    (told,) = objects(capsys.readouterr().err)
    assert (told["level"], told["exit_code"]) == ("error", 1)
    assert told["message"].startswith("the cluster at h:1 is gone: its head has not answered for 20 s.")


def test_another_format_is_refused(write_job: JobWriter) -> None:
    done = invoke("run", write_job(), "--log-format", "xml")
    assert done.exit_code == 2
    assert "'xml' is not one of 'auto', 'plain', 'json'" in done.stderr


@pytest.mark.usefixtures("ray_local")
def test_a_run_tells_objects_alone_and_its_summary_as_it_is_written_and_printed(
    write_job: JobWriter, tmp_path: Path
) -> None:
    out = tmp_path / ("a long [bold] name, " * 9 + "to its end")
    job = write_job(input={"limit": 150}, output={"path": str(out)})
    done = invoke("run", job, "--log-format", "json")
    assert (done.exit_code, done.stdout) == (0, "")
    told = objects(done.stderr)
    assert [told[0]["event"], *{each["event"] for each in told[1:-1]}, told[-1]["event"]] == [
        *("started", "progress", "finished"),
    ]
    assert (told[0]["rows"], told[0]["rows_total"], told[0]["output"]) == (0, 150, str(out))
    assert (told[-2]["rows"], told[-2]["errors"], told[-2]["workers"]) == (150, 0, 1)
    assert told[-1]["exit_code"] == 0
    assert told[-1]["summary"] == written(out)
    assert written(out)["rows done by this command"] == 150
    again = invoke("run", job)
    printed = [line.split("  ", 1) for line in again.stdout.splitlines()]
    assert {name: value.strip() for name, value in printed} == {
        name: format_figure(value) for name, value in written(out).items()
    }


def written(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "_pipeline" / "summary.json").read_text())
    return content
