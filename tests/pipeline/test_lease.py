"""One driver at a time on one folder; a dead one holds nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import LeaseHeld, OutputRefused
from pipeline.lease import Lease
from pipeline.locations import locate
from pipeline.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(locate(str(tmp_path / "out"), "output.path"))
    store.create()
    return store


def lease_file(store: Store) -> Path:
    return Path(store.records.child("lease.json").path)


def forge(store: Store, **changes: object) -> None:
    """A lease that somebody else left."""
    lease_file(store).unlink(missing_ok=True)
    with Lease(store):
        held = json.loads(lease_file(store).read_text())
    lease_file(store).write_text(json.dumps({**held, "owner": "another", **changes}))


def test_a_second_driver_is_refused_and_told_by_whom(store: Store) -> None:
    with Lease(store), pytest.raises(LeaseHeld, match=r"being written by process \d+ on .* wait for it, or stop it"):
        Lease(store).__enter__()


def test_the_lease_is_gone_after_the_run(store: Store) -> None:
    with Lease(store):
        assert lease_file(store).exists()
    assert not lease_file(store).exists()
    with Lease(store):
        pass


def test_a_driver_that_died_on_this_host_holds_nothing(store: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    forge(store, pid=dead.pid, started="1")
    with Lease(store) as lease:
        lease.check()


def test_another_process_under_the_same_number_is_not_the_holder(store: Store) -> None:
    forge(store, started="1")
    with Lease(store) as lease:
        lease.check()


def test_a_driver_on_another_host_holds_it_until_the_lease_runs_out(store: Store) -> None:
    forge(store, host="elsewhere")
    with pytest.raises(LeaseHeld, match="elsewhere"):
        Lease(store).__enter__()
    forge(store, host="elsewhere", expires=time.time() - 1)
    with Lease(store) as lease:
        lease.check()


def test_a_driver_whose_lease_was_taken_over_notices(store: Store) -> None:
    with Lease(store, seconds=0.08) as lease:
        lease_file(store).write_text(json.dumps({**json.loads(lease_file(store).read_text()), "owner": "another"}))
        lease._thread.join(timeout=10)
        with pytest.raises(LeaseHeld, match="taken over"):
            lease.check()
    assert lease_file(store).exists()


def test_the_lease_of_the_driver_that_took_over_is_left_alone(store: Store) -> None:
    with Lease(store):
        forged = {**json.loads(lease_file(store).read_text()), "owner": "another"}
        lease_file(store).write_text(json.dumps(forged))
    assert json.loads(lease_file(store).read_text())["owner"] == "another"


def test_a_store_that_fails_until_the_lease_runs_out_loses_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OutputRefused("a hiccup")

    with Lease(store, seconds=0.08) as lease:
        monkeypatch.setattr(store, "read_record", fail)
        lease._thread.join(timeout=10)
        with pytest.raises(LeaseHeld, match="taken over"):
            lease.check()


def test_a_lease_is_renewed_while_it_is_held(store: Store) -> None:
    with Lease(store, seconds=4) as lease:
        first = json.loads(lease_file(store).read_text())["expires"]
        while json.loads(lease_file(store).read_text())["expires"] == first:
            lease.check()
    assert not lease_file(store).exists()
