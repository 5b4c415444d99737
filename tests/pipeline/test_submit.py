"""Jobs handed to a real job server: their exit codes come back, and they need no client to go on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.pipeline.job_server import job_server
from tests.pipeline.ray_head import free_ports

ROOT = Path(__file__).resolve().parents[2]
REVIEWS = ROOT / "samples" / "reviews.parquet"
SECRET = "hunter2-is-a-secret"
SECONDS = 240.0
TIMES = 8
"""How often the 400 reviews come in a run that is to be under way when its clients have come and gone."""

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
"""By Ray 2.60's client, to aiohttp."""


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, int]]:
    with job_server(num_cpus=3) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def url(head: tuple[str, int]) -> str:
    return head[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the rows are and where output goes: what all nodes see, here."""
    folder = tmp_path_factory.mktemp("shared")
    texts = [None, *pq.read_table(REVIEWS).column("text").to_pylist() * TIMES]
    pq.write_table(pa.table({"text": texts}), folder / "flawed.parquet")
    pq.write_table(pa.table({"text": ["One more review of a kettle."] * 60_000}), folder / "many.parquet")
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a model, and neither job files nor config groups."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "samples" / "gpt2-tiny", folder / "models" / "tiny")
    return folder


def pipeline(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def job(place: Path, name: str, rows: Path, *overrides: str) -> list[str]:
    """A job over `rows`, for `pipeline submit` in `project`; its output goes to `place / name`."""
    options = [f"input.parquet={rows}", f"output.path={place / name}", "model.path=models/tiny"]
    options += ["cluster.cpus_per_worker=1", "cluster.workers.max=1", *overrides]
    return [str(ROOT / "jobs" / "score.yaml"), *options]


@pytest.fixture(scope="module")
def submitted(url: str, place: Path, project: Path) -> dict[str, str]:
    """Submission ids, as --no-wait prints them, of three runs that are under way together."""
    jobs = {
        "whole": job(place, "whole", REVIEWS, "output.rows_per_part=150"),
        "missing": job(place, "missing", place / "nothing.parquet"),
        "long": job(place, "long", place / "many.parquet", "output.rows_per_part=100"),
    }
    ids = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORE_PASSWORD", SECRET)
        patch.chdir(project)
        for name, arguments in jobs.items():
            done = pipeline("submit", *arguments, "--address", url, "--no-wait", "--env", "STORE_PASSWORD")
            assert done.exit_code == 0, done.output
            ids[name] = done.stdout.strip()
            assert f"--attach {ids[name]}" in done.stderr
            assert f"ray job stop {ids[name]}" in done.stderr
    return ids


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)


def client(url: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    return JobSubmissionClient(url)


def test_a_run_is_stopped_cleanly_by_rays_own_command(url: str, submitted: dict[str, str], place: Path) -> None:
    until(lambda: any((place / "long").glob("part-*")))
    jobs = client(url)
    assert jobs.stop_job(submitted["long"])
    done = pipeline("submit", "--attach", submitted["long"], "--address", url)
    assert done.exit_code == 1
    assert "was stopped on the cluster" in done.stderr
    assert "stopped by SIGTERM" in done.stdout
    assert not (place / "long" / "_pipeline" / "lease.json").exists()
    assert json.loads((place / "long" / "_pipeline" / "progress.json").read_text())["state"] == "interrupted"


@contextlib.contextmanager
def following(project: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A client in a process of its own, which has begun to tell the run's log."""
    command = [sys.executable, "-m", "pipeline", "submit", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project, env=environment
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_run_outlives_its_clients_and_its_row_errors_are_exit_code_3(url: str, place: Path, project: Path) -> None:
    arguments = job(place, "flawed", place / "flawed.parquet")
    address = ("--address", url)
    with (
        following(project, *arguments, *address, "--submission-id", "flawed") as killed,
        following(project, "--attach", "flawed", *address) as interrupted,
    ):
        killed.kill()
        interrupted.send_signal(signal.SIGINT)
        _, told = interrupted.communicate()
    assert client(url).get_job_status("flawed") == "RUNNING"
    assert interrupted.returncode == 1
    assert "the run goes on" in told
    done = pipeline("submit", "--attach", "flawed", *address)
    assert done.exit_code == 3, done.output
    rows = pq.read_table(place / "flawed")
    assert rows.num_rows == 400 * TIMES + 1
    assert sum(error is not None for error in rows.column("error").to_pylist()) == 1
    assert "rows with an error" in done.stdout


def test_a_run_is_followed_to_its_end_and_its_output_is_there(url: str, submitted: dict[str, str], place: Path) -> None:
    done = pipeline("submit", "--attach", submitted["whole"], "--address", url)
    assert done.exit_code == 0, done.output
    assert pq.read_table(place / "whole").num_rows == 400
    assert done.stdout.count("Running entrypoint") == 1
    assert pipeline("status", place / "whole").output.count("finished")


def test_what_is_wrong_only_on_the_cluster_is_exit_code_2(url: str, submitted: dict[str, str]) -> None:
    done = pipeline("submit", "--attach", submitted["missing"], "--address", url)
    assert done.exit_code == 2
    assert "there is no such file or folder" in done.stdout


def test_secrets_are_in_the_environment_of_the_run_alone(url: str, submitted: dict[str, str]) -> None:
    jobs = client(url)
    details = jobs.get_job_info(submitted["whole"])
    assert details.runtime_env["env_vars"]["STORE_PASSWORD"] == SECRET
    assert SECRET not in f"{details.entrypoint} {details.metadata} {jobs.get_job_logs(submitted['whole'])}"


def refused(*arguments: str | Path) -> str:
    """What is said of a command that sends nothing."""
    done = pipeline("submit", *arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


SOUND = (ROOT / "jobs" / "score.yaml", f"input.parquet={REVIEWS}", "output.path=/nowhere/out")


def test_a_submission_id_that_is_taken_is_refused(url: str, submitted: dict[str, str]) -> None:
    told = refused(*SOUND, "--address", url, "--submission-id", submitted["missing"])
    assert "already exists" in told


def test_a_submission_that_is_not_known_is_refused(url: str) -> None:
    assert "nobody" in refused("--attach", "nobody", "--address", url)


def test_a_token_that_is_missing_is_told(url: str) -> None:
    command = [sys.executable, "-m", "pipeline", "submit", "--attach", "any", "--address", url]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "asks for a token" in done.stderr


def test_an_address_that_is_no_job_server_is_told(head: tuple[str, int]) -> None:
    assert "no Ray job server" in refused(*SOUND, "--address", f"http://127.0.0.1:{head[1]}")
    assert "no Ray job server answers" in refused(*SOUND, "--address", f"127.0.0.1:{free_ports(1)[0]}")
    assert "by its URL" in refused(*SOUND, "--address", "ray://127.0.0.1:10001")


def test_a_bad_job_is_refused_before_a_server_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert "did you mean stride?" in refused(*SOUND, "score.strid=3")
    assert "--env NOWHERE" in refused(*SOUND, "--env", "NOWHERE")
    assert "output.path out/x is relative" in refused(*SOUND, "output.path=out/x")
    assert "input.parquet rows is relative" in refused(*SOUND, "input.parquet=[/shared,rows]")
    assert "leads out of the working directory" in refused(*SOUND, f"model.path=../{ROOT.name}/samples/gpt2-tiny")
    (tmp_path / "env.yaml").write_text("working_dir: /x")
    assert "--working-dir" in refused(*SOUND, "--runtime-env", tmp_path / "env.yaml")
    assert "give either JOB or --attach" in refused("--address", "http://head:8265")
    assert "--address is missing" in refused(*SOUND)


def test_what_is_missing_of_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    assert "pip install 'gpt2-pipeline[cluster]'" in refused(*SOUND, "--address", "http://head:8265")


def test_what_ray_lacks_for_submitting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert "pip install 'gpt2-pipeline[cluster]'" in refused(*SOUND, "--address", "http://127.0.0.1:1")
