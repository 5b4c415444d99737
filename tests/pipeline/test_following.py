"""The log of a submitted run, over connections that break."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobStatus

from pipeline.errors import Interrupted, PipelineError
from pipeline.following import TRIES, Log, ServerGone, exit_code

LINES = ("first\n", "second\n", "third\n")


class Client:
    """Sends the log from its beginning each time; the n-th connection breaks after `breaks[n]` lines."""

    def __init__(self, breaks: list[int], error: Exception) -> None:
        self.breaks, self.error = breaks, error

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        assert submission_id == "one"
        until = self.breaks.pop(0) if self.breaks else None
        for line in LINES[:until]:
            yield line
        if until is not None:
            raise self.error

    def get_job_info(self, submission_id: str) -> Any:
        return SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0)


@pytest.mark.parametrize("error", [aiohttp.ServerDisconnectedError(), RuntimeError("closed"), ConnectionResetError()])
def test_every_line_is_written_once_whatever_breaks(error: Exception) -> None:
    written: list[str] = []
    details = Log(Client([1, 0, 2], error), "one", written.append, wait=lambda _: None).to_the_end()
    assert "".join(written) == "".join(LINES)
    assert exit_code(details) == 0


def test_a_server_that_is_gone_is_given_up_after_a_minute() -> None:
    waits: list[float] = []
    with pytest.raises(ServerGone, match="no route"):
        Log(Client([0] * TRIES, OSError("no route")), "one", print, waits.append).to_the_end()
    assert 60 <= sum(waits) <= 90


def details(**fields: Any) -> Any:
    return SimpleNamespace(submission_id="one", **{"message": None, "driver_exit_code": None, **fields})


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (2, 2), (3, 3), (127, 127), (-9, 137)])
def test_exit_codes_are_the_drivers_own(code: int, told: int) -> None:
    assert exit_code(details(status=JobStatus.FAILED, driver_exit_code=code)) == told


def test_a_run_without_an_exit_code_is_a_failure_with_its_reason() -> None:
    with pytest.raises(Interrupted, match="one was stopped on the cluster"):
        exit_code(details(status=JobStatus.STOPPED))
    with pytest.raises(PipelineError, match="one failed on the cluster: no such package"):
        exit_code(details(status=JobStatus.FAILED, message="no such\n package"))
