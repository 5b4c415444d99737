"""Faults of disks and object stores: which go away, how long that is waited for, and what to do about the others.

pyarrow's own S3 client, as a URI makes it, repeats each request every 0.2 s, 31 times: for 6 s where a store refuses,
for 100 s where it hangs. A try here is therefore a long one, and what is added is the wait between them.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

Result = TypeVar("Result")

TRANSIENT_ERRNO = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    }
)
TRANSIENT_TEXT = re.compile(
    r"AWS Error (INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|NETWORK_CONNECTION)"
    r"|HTTP status (408|429|5\d\d)"
    r"|google::cloud::Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED)"
    r"|SlowDown|ServiceUnavailable|InternalError|timed out|Connection reset",
)
"""How pyarrow's file systems, which tell no errno of a store, name what may go away."""

REMEDIES = {
    errno.ENOSPC: "the disk is full: free space there",
    errno.EDQUOT: "the quota is used up: free space there, or ask for more",
    errno.EFBIG: "no file may grow so large there: raise the limit, or give less output.rows_per_part",
    errno.EROFS: "it is mounted read-only: mount it for writing",
    errno.EACCES: "permission denied: give this user the rights to it",
    errno.EPERM: "not permitted: give this user the rights to it",
    errno.ENOENT: "it is gone, or its folder is: leave the output folder alone while a run goes on",
}
STORE_REMEDIES = {
    "ACCESS_DENIED": "access denied: permit these credentials to list, get, put and delete there",
    "HTTP status 403": "access denied: permit these credentials to list, get, put and delete there",
    "INVALID_ACCESS_KEY_ID": "the store does not know this access key: give valid credentials",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is wrong: give valid credentials",
    "NO_SUCH_BUCKET": "there is no such bucket: make it, or name one that there is",
}


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    number = getattr(error, "errno", None)
    if number is not None:
        return number in TRANSIENT_ERRNO
    return isinstance(error, OSError | pa.ArrowException) and TRANSIENT_TEXT.search(str(error)) is not None


def explain(error: BaseException) -> str:
    """What is wrong and what to do, then the error itself."""
    if is_transient(error):
        return f"it did not answer, or failed, again and again: try later, the same command goes on ({error})"
    number = getattr(error, "errno", None)
    remedy = None if number is None else REMEDIES.get(number)
    remedy = remedy or next((text for code, text in STORE_REMEDIES.items() if code in str(error)), None)
    return f"{remedy}; then the same command goes on ({error})" if remedy else str(error)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter (M. Brooker, "Exponential Backoff And Jitter", 2015)."""

    tries: int = 5
    seconds: float = 30.0
    """No try begins later than this after the first."""
    longest: float = 1.0
    """Seconds that the first wait lasts at most; each later one may last twice as long."""
    wait: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def call(self, function: Callable[[], Result]) -> Result:
        """What `function` returns, called again after transient errors. Raises the last error, or the first other."""
        attempts = Attempts(self)
        while True:
            try:
                return function()
            except (OSError, pa.ArrowException) as error:
                attempts.wait_after(error)


PATIENT = Backoff()
ONCE = Backoff(tries=1)
"""For calls that a loop of their own repeats."""


class Attempts:
    """The tries of one call."""

    def __init__(self, backoff: Backoff) -> None:
        self.backoff, self.failed, self.began = backoff, 0, backoff.clock()

    def wait_after(self, error: Exception) -> None:
        """Wait before another try; raises `error` where none is left, or none would help."""
        self.failed += 1
        late = self.backoff.clock() - self.began >= self.backoff.seconds
        if late or self.failed >= self.backoff.tries or not is_transient(error):
            raise error
        self.backoff.wait(random.uniform(0, self.backoff.longest * 2 ** (self.failed - 1)))


def resumed(
    read_from: Callable[[int], Iterator[pa.RecordBatch]], row: int, backoff: Backoff = PATIENT
) -> Iterator[pa.RecordBatch]:
    """The batches of `read_from(row)`; after a transient error those that follow the last one that came."""
    attempts = Attempts(backoff)
    while True:
        try:
            for batch in read_from(row):
                yield batch
                row, attempts = row + batch.num_rows, Attempts(backoff)
            return
        except (OSError, pa.ArrowException) as error:
            attempts.wait_after(error)
