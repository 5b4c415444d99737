"""The lease on an output folder: one driver at a time, and none for ever.

A lease runs out by itself when its driver stops renewing it. On the host where it was taken nobody has to wait for
that: a driver that is dead there holds nothing. The clocks of two hosts are never trusted to agree.

Should two drivers work on one folder for all that (no file system of an object store here can create an object only
where there is none), both write the same parts under the same names, and one learns of the other when it renews.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import log
from pipeline.errors import LeaseHeld, OutputRefused, PipelineError, StoreError
from pipeline.retries import ONCE, explain
from pipeline.store import STAGING, Store

NAME = "lease.json"
LOCK = "lock"
TORN = {"owner": "torn", "host": "a host that is not known", "pid": 0, "started": None, "expires": 0.0}
SECONDS = 60.0
SETTLE_SECONDS = 1.0
"""On an object store, which creates no object only where there is none: time for another's write to arrive."""
RENEWALS = 4
"""Times that a lease is renewed in its life, so that three may fail."""
LOOK_SECONDS = 0.5
"""Between two looks at a lease of which only its renewal can tell whether its holder lives."""


TAKEN = "was taken over by another driver, since this one was not heard of"
GONE = (
    f"has lost {NAME}: its _pipeline was removed while the run went on; "
    "leave the output folder alone, and give the same command again"
)


class Lease:
    """Held inside its `with` block, and renewed by a thread of its own."""

    def __init__(
        self,
        store: Store,
        seconds: float = SECONDS,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.seconds = store, seconds
        self.owner = uuid.uuid4().hex
        self._wait, self._clock = wait, clock
        self._ended = threading.Event()
        self._lost = ""
        self._ends = 0.0
        """By this process' own clock, which nobody sets."""
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError, PipelineError):
            if self._holder(self.store) == self.owner:
                self.store.delete_record(NAME)

    def check(self) -> None:
        """Raise LeaseHeld if somebody else has taken the folder meanwhile, or may take it by now."""
        if self._lost:
            raise LeaseHeld(f"{self.store.folder.uri} {self._lost}")
        if time.monotonic() > self._ends:
            raise LeaseHeld(
                f"{self.store.folder.uri}: the lease could not be renewed for {self.seconds:.0f} s, so another driver "
                "may have begun; what was committed stays: the same command goes on once the store answers"
            )

    def _take(self) -> None:
        found = held(self.store)
        if found is not None and not _dead_here(found):
            found = self._watched(found)
        self._ends = time.monotonic() + self.seconds
        if self.store.folder.local:
            with _alone(self.store):
                self._create(found)
        else:
            self._write(self.store)
            self._wait(SETTLE_SECONDS)
        if self._holder(self.store) != self.owner:
            raise self._met()

    def _watched(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """The record once its holder is known to be dead. Raises LeaseHeld where it lives, or may.

        What another host's clock wrote proves little: a lease that seems to have run out, or to run for longer than
        any does, is watched for longer than a living holder leaves it alone.
        """
        seconds = float(record.get("seconds", SECONDS))
        left = float(record["expires"]) - self._clock()
        who = f"process {record['pid']} on {record['host']}"
        if 0 < left <= seconds:
            raise LeaseHeld(
                f"output.path {self.store.folder.uri} is being written by {who} "
                f"(its lease runs another {left:.0f} s): wait for it, or stop it first"
            )
        log.tell(f"waiting {1.25 * seconds:.0f} s to see whether {who} still writes this output", "waiting")
        for _ in range(RENEWALS + 1):
            self._wait(seconds / RENEWALS)
            found = held(self.store)
            if found is None:
                return None
            if found != record:
                raise LeaseHeld(
                    f"output.path {self.store.folder.uri} is being written by {who} "
                    "(it renews its lease): wait for it, or stop it first"
                )
        return record

    def _create(self, record: dict[str, Any] | None) -> None:
        """Put a dead lease aside and make a new one; of several that try, a disk lets one."""
        if held(self.store) != record:
            raise self._met()
        path = Path(self.store.records.child(NAME).path)
        if record is not None:
            aside = path.with_name(f"{NAME}.{record['owner']}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside)
                aside.unlink()
        draft = path.with_name(STAGING) / f"{NAME}.{self.owner}"
        try:
            draft.write_text(json.dumps(self._content()), encoding="utf-8")
            os.link(draft, path)  # whole, and only where there is none
        except FileExistsError:
            raise self._met() from None
        except OSError as error:
            raise StoreError(f"{path} can't be written: {explain(error)}") from error
        finally:
            draft.unlink(missing_ok=True)

    def _write(self, store: Store) -> None:
        store.write_record(NAME, self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "host": _host(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "expires": self._clock() + self.seconds,
            "seconds": self.seconds,
        }

    def _holder(self, store: Store) -> str | None:
        record = held(store)
        return None if record is None else str(record["owner"])

    def _met(self) -> LeaseHeld:
        return LeaseHeld(f"output.path {self.store.folder.uri}: another driver began at the same moment")

    def _renew(self) -> None:
        store = Store(self.store.folder, ONCE)  # the next renewal is the next try
        while not self._lost and not self._ended.wait(self.seconds / RENEWALS):
            self._renew_once(store)

    def _renew_once(self, store: Store) -> None:
        began = time.monotonic()
        with contextlib.suppress(OSError, PipelineError):
            holder = self._holder(store)
            if holder != self.owner:
                self._lost = TAKEN if holder is not None else GONE
                return
            self._write(store)
            self._ends = began + self.seconds


def held(store: Store) -> dict[str, Any] | None:
    """What `lease.json` says; of a torn one, as a power cut may leave it, that nobody known holds it."""
    try:
        record = store.read_record(NAME)
    except OutputRefused as error:
        if isinstance(error.__cause__, ValueError):  # it was read, and is no JSON
            return TORN
        raise
    return record if record is None or record.keys() >= TORN.keys() else TORN


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keep other newcomers waiting, where the file system has locks for folders; a dead process has none."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            # For writing, which network file systems want of whoever locks.
            descriptor = os.open(store.records.child(LOCK).path, os.O_RDWR | os.O_CREAT)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def lives(held_before: Mapping[str, Any], store: Store, wait: Callable[[float], object] = time.sleep) -> bool:
    """Whether the holder that `lease.json` told of still works on the folder; writes nothing.

    On this host its process tells. Of a lease that by another host's clock has run out, or runs for longer than any
    does, nothing follows: it is watched until it is renewed, or was due to be half as long again.
    """
    if held_before["host"] == _host():
        return not _dead_here(held_before)
    if held_before == TORN:
        return False
    seconds = float(held_before.get("seconds", SECONDS))
    if 0 < float(held_before["expires"]) - time.time() <= seconds:
        return True
    for _ in range(round(1.5 * seconds / RENEWALS / LOOK_SECONDS)):
        wait(LOOK_SECONDS)
        found = held(store)
        if found != held_before:
            return found is not None
    return False


def _dead_here(held: Mapping[str, Any]) -> bool:
    """Whether the holder ran on this host and does not run any more."""
    if held["host"] != _host():
        return False
    started = _start_time(int(held["pid"]))
    return started is None or started not in {held["started"], ""}


def _host() -> str:
    """This host, and on Linux this boot and process namespace: process numbers mean the same only within one."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        found.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(found)


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; tells a process from a later one of the same number.

    None where there is no such process. Where /proc is not there or hides it, a living process has the start time "".
    """
    with contextlib.suppress(FileNotFoundError, PermissionError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
