"""One driver at a time on one folder; a dead one holds nothing."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import LeaseHeld, StoreError
from pipeline.lease import SECONDS, TORN, Lease
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


@pytest.mark.parametrize("content", ["", '{"owner": "x"', "{}", '{"other": 1}'])
def test_a_torn_lease_is_watched_and_then_taken(store: Store, content: str) -> None:
    lease_file(store).write_text(content)
    waits: list[float] = []
    with Lease(store, wait=waits.append):
        assert json.loads(lease_file(store).read_text())["host"] != TORN["host"]
    assert sum(waits) > SECONDS


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
    waits: list[float] = []
    with Lease(store, wait=waits.append) as lease:
        lease.check()
    assert sum(waits) == 75


def test_a_dead_driver_whose_clock_was_an_hour_ahead_locks_nobody_out_for_an_hour(store: Store) -> None:
    forge(store, host="elsewhere", expires=time.time() + 3600)
    waits: list[float] = []
    with Lease(store, wait=waits.append) as lease:
        lease.check()
    assert sum(waits) == 75


def test_a_living_driver_whose_clock_is_an_hour_behind_keeps_its_lease(store: Store) -> None:
    def until_renewed(seconds: float) -> None:
        before = lease_file(store).read_text()
        while lease_file(store).read_text() == before:
            time.sleep(0.01)

    with Lease(store, seconds=4, clock=lambda: time.time() - 3600) as lease:
        with pytest.raises(LeaseHeld, match=r"being written by process \d+ on .* \(it renews its lease\)"):
            Lease(store, wait=until_renewed).__enter__()
        lease.check()


def test_who_waits_for_a_lease_to_run_out_has_it_at_once_when_it_is_given_back(store: Store) -> None:
    forge(store, host="elsewhere", expires=time.time() - 1)
    waits: list[float] = []

    def given_back(seconds: float) -> None:
        waits.append(seconds)
        lease_file(store).unlink()

    with Lease(store, wait=given_back) as lease:
        lease.check()
    assert len(waits) == 1


def test_a_dead_lease_goes_to_one_of_many(store: Store) -> None:
    for _ in range(10):
        forge(store, started="1")
        leases = [Lease(store) for _ in range(8)]
        together = threading.Barrier(len(leases))

        def take(lease: Lease, together: threading.Barrier = together) -> bool:
            together.wait()
            try:
                lease.__enter__()
            except LeaseHeld:
                return False
            return True

        with ThreadPoolExecutor(len(leases)) as pool:
            taken = list(pool.map(take, leases))
        assert taken.count(True) == 1
        winner = leases[taken.index(True)]
        assert json.loads(lease_file(store).read_text())["owner"] == winner.owner
        winner.__exit__(None, None, None)
        assert sorted(file.name for file in lease_file(store).parent.iterdir()) == ["lock", "staging"]


def test_a_newcomer_that_still_saw_the_dead_lease_leaves_the_new_one_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(store, started="1")
    late, old = Store(store.folder), store.read_record("lease.json")
    answers = iter([old])
    with Lease(store) as lease:
        monkeypatch.setattr(late, "read_record", lambda name: next(answers, None) or store.read_record(name))
        with pytest.raises(LeaseHeld, match="at the same moment"):
            Lease(late).__enter__()
        assert json.loads(lease_file(store).read_text())["owner"] == lease.owner


def test_a_driver_whose_records_were_removed_is_told(store: Store) -> None:
    with Lease(store, seconds=0.08) as lease:
        lease_file(store).unlink()
        lease._thread.join(timeout=10)
        with pytest.raises(LeaseHeld, match="_pipeline was removed while the run went on"):
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
    def fail(self: Store, name: str) -> None:
        raise StoreError("a hiccup")

    with Lease(store, seconds=0.08) as lease:
        monkeypatch.setattr(Store, "read_record", fail)
        with pytest.raises(LeaseHeld, match="could not be renewed"):
            while True:
                lease.check()


def test_a_lease_is_renewed_while_it_is_held(store: Store) -> None:
    with Lease(store, seconds=4) as lease:
        first = json.loads(lease_file(store).read_text())["expires"]
        while json.loads(lease_file(store).read_text())["expires"] == first:
            lease.check()
    assert not lease_file(store).exists()
