"""`pipeline status` tells from the folder alone what a run does, or how it ended."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pipeline.cli import main
from pipeline.errors import PipelineError
from pipeline.lease import RENEWALS, SECONDS, Lease
from pipeline.plan import Plan
from pipeline.records import Recorder, Tally
from pipeline.status import describe, looks, read_status, watch
from pipeline.store import Store
from tests.pipeline.conftest import JobWriter
from tests.pipeline.test_store import commit, make_plan, store_at


def status(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["status", *map(str, arguments)])


def told(folder: Path) -> dict[str, Any]:
    done = status(folder, "--json")
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.fixture
def run(tmp_path: Path) -> tuple[Store, Plan]:
    """A folder with a plan of four parts, of which one is committed."""
    store, plan = store_at(tmp_path), make_plan()
    store.write_record("plan.json", plan.to_json())
    store.write_record("job.yaml", "model: {path: gpt2}")
    commit(store, plan, next(plan.parts()), 100)
    return store, plan


def test_a_run_that_goes_on_is_running_and_one_that_ended_is_finished(run: tuple[Store, Plan], tmp_path: Path) -> None:
    store, plan = run
    with Lease(store), Recorder(store, plan, Tally(100, 1)):
        shown = told(tmp_path)
        assert (shown["state"], shown["parts_committed"], shown["parts_planned"]) == ("running", 1, 4)
        assert shown["lease_holder"].startswith("process ")
    shown = told(tmp_path)
    assert (shown["state"], shown["lease_holder"]) == ("finished", None)
    assert (shown["rows"], shown["rows_total"], shown["errors"]) == (100, 280, 1)
    assert (shown["task"], shown["model"], shown["fingerprint"]) == ("score", "gpt2", plan.fingerprint)


def test_a_run_that_failed_is_told_with_its_reason(run: tuple[Store, Plan], tmp_path: Path) -> None:
    store, plan = run
    with pytest.raises(PipelineError), Lease(store), Recorder(store, plan, Tally(100)):
        raise PipelineError("2 parts failed; all others are committed")
    done = status(tmp_path)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:4] == [
        "state        stopped: 2 parts failed; all others are committed",
        f"output       {tmp_path}",
        f"run          {plan.fingerprint[:10]}: score by gpt2",
        "parts        1 of 4 committed",
    ]


def elsewhere(seconds: float) -> dict[str, Any]:
    """A lease of a driver on another host, which by that host's clock runs for so long."""
    return {"owner": "x", "host": "elsewhere", "pid": 1, "started": "1", "expires": time.time() + seconds}


def test_a_driver_elsewhere_lives_while_its_lease_holds(run: tuple[Store, Plan], tmp_path: Path) -> None:
    store, _ = run
    store.write_record("progress.json", {"state": "running", "rows": 50, "seconds_left": 10.0})
    store.write_record("lease.json", elsewhere(50))
    shown = told(tmp_path)
    assert (shown["state"], shown["seconds_left"]) == ("running", 10.0)
    assert shown["lease_holder"] == "process 1 on elsewhere"


@pytest.mark.parametrize("seconds", [-1, -3600, 3600], ids=["ran out", "clock behind", "clock ahead"])
def test_a_driver_elsewhere_whose_clock_proves_nothing_lives_if_it_renews_its_lease(
    run: tuple[Store, Plan], tmp_path: Path, seconds: float
) -> None:
    store, _ = run
    store.write_record("lease.json", elsewhere(seconds))
    waited: list[float] = []
    assert read_status(str(tmp_path), waited.append).state == "died"
    assert SECONDS / RENEWALS < sum(waited) < SECONDS

    def renew(_: float) -> None:
        store.write_record("lease.json", elsewhere(seconds + 1))

    assert read_status(str(tmp_path), renew).state == "running"
    assert read_status(str(tmp_path), lambda _: store.delete_record("lease.json")).state == "died"


def test_a_driver_on_this_host_is_judged_by_its_process_and_no_clock(run: tuple[Store, Plan], tmp_path: Path) -> None:
    store, _ = run
    with Lease(store):
        held = store.read_record("lease.json")
        assert held is not None
        for expires in (0.0, time.time() + 3600):
            store.write_record("lease.json", {**held, "expires": expires})
            assert told(tmp_path)["state"] == "running"
        store.write_record("lease.json", {**held, "started": "1", "expires": time.time() + 50})
        assert told(tmp_path)["state"] == "died"
        store.write_record("lease.json", held)


def test_a_torn_lease_is_nobodys(run: tuple[Store, Plan], tmp_path: Path) -> None:
    run[0].write_record("lease.json", "{")
    assert told(tmp_path)["state"] == "died"


def test_of_a_streamed_run_the_parts_so_far_are_told(tmp_path: Path) -> None:
    store, plan = store_at(tmp_path), make_plan(rows=None)
    store.write_record("plan.json", plan.to_json())
    commit(store, plan, next(plan.parts()), 100)
    assert "1 so far committed" in describe(read_status(str(tmp_path)))


def test_watching_ends_with_the_run(run: tuple[Store, Plan], tmp_path: Path) -> None:
    store, plan = run
    with Lease(store), Recorder(store, plan, Tally()):
        seen = looks(str(tmp_path), seconds=0.0)
        assert [next(seen).state, next(seen).state] == ["running", "running"]
    assert [each.state for each in seen] == ["finished"]
    assert status(tmp_path, "--watch").stdout.count("finished") == 1
    screen = io.StringIO()
    watch(str(tmp_path), describe, Console(file=screen, force_terminal=True, width=200))
    assert "state        finished" in screen.getvalue()


@pytest.mark.parametrize("place", ["", "nowhere"])
def test_a_folder_that_is_no_run_is_refused_without_torch_or_ray(tmp_path: Path, place: str) -> None:
    done = status(tmp_path / place)
    assert done.exit_code == 2
    assert "holds no run (no _pipeline/plan.json in it): give a run's output.path" in done.stderr
    assert not list(tmp_path.iterdir())


def test_status_imports_neither_torch_nor_ray(run: tuple[Store, Plan], tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from pipeline.cli import main; "
        "assert CliRunner().invoke(main, ['status', sys.argv[1]]).exit_code == 0; "
        "heavy = {'torch', 'ray', 'datasets', 'hydra', 'gpt2model'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_killed_driver_is_told_dead_at_once(write_job: JobWriter, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = write_job(output={"path": str(out), "rows_per_part": 10})
    command = [sys.executable, "-m", "pipeline", "run", str(job)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(out.glob("part-*")):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
        shown = told(out)
        process.send_signal(signal.SIGKILL)
    assert (shown["state"], shown["task"], shown["parts_planned"]) == ("running", "score", 90)
    shown = told(out)
    assert (shown["state"], shown["workers"]) == ("died", 0)
    assert 1 <= shown["parts_committed"] <= 90
    assert "the same `pipeline run` goes on from there" in status(out).stdout
