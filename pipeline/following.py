"""A submitted run's log, followed to its end, and the exit code that it ended with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from pipeline.errors import Interrupted, PipelineError

TRIES = 7
"""How often in a row the job server may fail to answer, each time after twice the wait: for a minute in all."""


class ServerGone(Exception):
    """The job server does not answer any more."""


class Log:
    """A run's log, of which everything is written once, whatever becomes of the connection."""

    def __init__(
        self,
        client: Any,
        submission_id: str,
        write: Callable[[str], object],
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """`client` is Ray's JobSubmissionClient, or has its `tail_job_logs` and `get_job_info`."""
        self._client, self._id, self._write, self._wait = client, submission_id, write, wait
        self._written = 0

    def to_the_end(self) -> Any:
        """Ray's details of the job, which has ended. Raises ServerGone."""
        import aiohttp  # of ray[default]

        failed = 0
        while True:
            try:
                asyncio.run(self._tail())
                details = self._client.get_job_info(self._id)
                failed = 0
                if details.status.is_terminal():
                    return details
            except (OSError, RuntimeError, aiohttp.ClientError) as error:  # RuntimeError: Ray's own
                failed += 1
                if failed == TRIES:
                    raise ServerGone(" ".join(str(error).split())) from error
            self._wait(2**failed / 2)

    async def _tail(self) -> None:
        """The log from its beginning on, as Ray sends it each time: what was written before is left out."""
        place = 0
        async for text in self._client.tail_job_logs(self._id):
            fresh = text[max(0, self._written - place) :]
            place += len(text)
            if fresh:
                self._write(fresh)
                self._written = place


def exit_code(details: Any) -> int:
    """The driver's own; as a shell tells it where a signal ended the driver.

    `details` are Ray's. Raises PipelineError where the driver was stopped, or never ran.
    """
    code = details.driver_exit_code
    if code is not None:
        return int(code) if code >= 0 else 128 - int(code)
    if details.status == "STOPPED":
        raise Interrupted(
            f"{details.submission_id} was stopped on the cluster; what was committed stays: "
            "submit the job again to go on"
        )
    raise PipelineError(
        f"{details.submission_id} failed on the cluster: {' '.join(str(details.message).split())[:2000]}"
    )
