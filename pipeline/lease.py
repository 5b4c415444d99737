"""The lease on an output folder: one driver at a time, and none for ever.

A lease runs out by itself when its driver stops renewing it. On the host where it was taken nobody has to wait for
that: a driver that is dead there holds nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.errors import LeaseHeld, PipelineError, StoreError
from pipeline.store import Store

NAME = "lease.json"
SECONDS = 60.0


class Lease:
    """Held inside its `with` block, and renewed by a thread of its own."""

    def __init__(self, store: Store, seconds: float = SECONDS) -> None:
        self.store, self.seconds = store, seconds
        self.owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._lost = False
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
            if self._holder() == self.owner:
                self.store.delete_record(NAME)

    def check(self) -> None:
        """Raise LeaseHeld if somebody else has taken the folder meanwhile."""
        if self._lost:
            raise LeaseHeld(
                f"{self.store.folder.uri} was taken over by another driver, since this one was not heard of"
            )

    def _take(self) -> None:
        held = self.store.read_record(NAME)
        if held is not None:
            left = float(held["expires"]) - time.time()
            if left > 0 and not _dead_here(held):
                raise LeaseHeld(
                    f"output.path {self.store.folder.uri} is being written by process {held['pid']} on {held['host']} "
                    f"(its lease runs another {left:.0f} s): wait for it, or stop it first"
                )
            self._clear(held)
        if self.store.folder.local:
            self._create()
        else:
            self._write()
        if self._holder() != self.owner:
            raise LeaseHeld(f"output.path {self.store.folder.uri}: another driver began at the same moment")

    def _clear(self, held: dict[str, Any]) -> None:
        """Put a dead lease aside; of two drivers that try, a disk lets one."""
        if not self.store.folder.local:
            return
        file = Path(self.store.records.child(NAME).path)
        aside = file.with_name(f"{NAME}.{held['owner']}")
        with contextlib.suppress(FileNotFoundError):
            file.rename(aside)
            aside.unlink()

    def _create(self) -> None:
        path = Path(self.store.records.child(NAME).path)
        draft = path.with_name(f"{NAME}.{self.owner}")
        try:
            draft.write_text(json.dumps(self._content()), encoding="utf-8")
            os.link(draft, path)  # whole, and only where there is none
        except FileExistsError:
            raise LeaseHeld(f"output.path {self.store.folder.uri}: another driver began at the same moment") from None
        except OSError as error:
            raise StoreError(f"{path} can't be written: {error}") from error
        finally:
            draft.unlink(missing_ok=True)

    def _write(self) -> None:
        self.store.write_record(NAME, self._content())

    def _content(self) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "host": _host(),
            "pid": os.getpid(),
            "started": _start_time(os.getpid()),
            "expires": time.time() + self.seconds,
        }

    def _holder(self) -> str | None:
        held = self.store.read_record(NAME)
        return None if held is None else str(held["owner"])

    def _renew(self) -> None:
        expires = time.time() + self.seconds
        while not self._ended.wait(self.seconds / 4):
            # A store that does not answer now may at the next turn; the lease outlives three missed renewals.
            with contextlib.suppress(OSError, PipelineError):
                if self._holder() != self.owner:
                    self._lost = True
                    return
                self._write()
                expires = time.time() + self.seconds
            if time.time() > expires:
                self._lost = True
                return


def alive(held: Mapping[str, Any]) -> bool:
    """Whether the lease that `lease.json` tells of still keeps others out."""
    return float(held["expires"]) > time.time() and not _dead_here(held)


def _dead_here(held: Mapping[str, Any]) -> bool:
    """Whether the holder ran on this host and does not run any more."""
    if held["host"] != _host():
        return False
    started = _start_time(int(held["pid"]))
    return started is None or started != held["started"]


def _host() -> str:
    """This host, and on Linux this boot and process namespace: process numbers mean the same only within one."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
        found.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(found)


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; tells a process from a later one of the same number.

    None where there is no such process. Where there is no /proc, a living process has the start time "".
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
