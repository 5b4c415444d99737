"""A job handed to a cluster's own job server: it runs there, and goes on when this machine is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pipeline.errors import Interrupted, JobError, PipelineError
from pipeline.following import Log, ServerGone, exit_code
from pipeline.submission import Submission

ANSWER_SECONDS = 10.0
UPLOAD_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Environment variables that Ray's client prefers to the address it is given."""


class Server:
    """A cluster's job server."""

    def __init__(self, address: str | None, debug: bool = False) -> None:
        """Connect. Raises JobError where no job server answers."""
        self.address = _url(address)
        try:
            import aiohttp  # noqa: F401 (what Ray's client follows logs with)
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise _incomplete(error) from error
        _knock(self.address)
        with _refusals(self.address), _without(ADDRESSES):
            self._client = JobSubmissionClient(self.address)
        if not debug:
            for name in UPLOAD_LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)

    def submit(self, submission: Submission, submission_id: str | None = None) -> str:
        """Pack the job and hand it over; gives its submission id. Raises JobError."""
        with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
            package = Path(folder) / "package.zip"
            submission.pack(package)
            with _refusals(self.address):
                submitted: str = self._client.submit_job(
                    entrypoint=submission.entrypoint,
                    runtime_env={**submission.runtime_env, "working_dir": str(package)},
                    submission_id=submission_id,
                    metadata=dict(submission.metadata),
                )
        return submitted

    def follow(self, submission_id: str, write: Callable[[str], object]) -> int:
        """Give the run's log to `write` until it ends; the exit code of the run.

        Raises Interrupted on Ctrl-C, and PipelineError where the job server is gone; the run goes on in either case.
        Raises JobError where the server knows no such submission.
        """
        try:
            with _refusals(self.address):
                self._client.get_job_info(submission_id)
            return exit_code(Log(self._client, submission_id, write).to_the_end())
        except KeyboardInterrupt:
            raise Interrupted(f"no longer followed; the run goes on. {self.ways(submission_id)}") from None
        except ServerGone as error:
            raise PipelineError(
                f"{self.address} does not answer any more ({error}); the run may go on. {self.ways(submission_id)}"
            ) from error

    def ways(self, submission_id: str) -> str:
        """How a submitted run is followed and stopped."""
        return (
            f"Follow it: pipeline submit --attach {submission_id} --address {self.address}  "
            f"Stop it: ray job stop {submission_id} --address {self.address}"
        )


def _url(address: str | None) -> str:
    address = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if not address:
        raise JobError("--address is missing: give the cluster's job server, such as http://head:8265")
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise JobError(f"--address {address}: give the cluster's job server by its URL, such as http://head:8265")
    return url


def _knock(url: str) -> None:
    """Whether a job server is there: Ray's own client waits without end for one that takes calls and says nothing."""
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:  # Ray's client knows more to say
            return
        raise JobError(f"--address {url} is no Ray job server (HTTP status {error.code}): {_REMEDY}") from error
    except Exception as error:  # http.client has exceptions of its own for what speaks no HTTP
        raise JobError(f"--address {url}: no Ray job server answers there ({error}): {_REMEDY}") from error


_REMEDY = (
    "give the address of the head's dashboard, whose port is 8265 unless `ray start --dashboard-port` said another; "
    "the head needs pip install 'gpt2-pipeline[cluster]', and --dashboard-host=0.0.0.0 to be reached from elsewhere"
)


@contextlib.contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Inside, what Ray's client raises is the user's to mend."""
    from ray.exceptions import AuthenticationError, RayError

    try:
        yield
    except AuthenticationError as error:
        raise JobError(
            f"{address} asks for a token: export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as the head has it (or its "
            "file as RAY_AUTH_TOKEN_PATH)"
        ) from error
    except RuntimeError as error:
        if "ray[default]" in str(error):
            raise _incomplete(error) from error
        raise JobError(f"{address} refuses: {' '.join(str(error).split())[:2000]}") from error
    except (OSError, ValueError, TypeError, RayError) as error:
        raise JobError(f"{address}: {' '.join(str(error).split())[:2000]}") from error


def _incomplete(error: Exception) -> JobError:
    return JobError(
        f"submitting needs more of Ray than is installed here ({error}): pip install 'gpt2-pipeline[cluster]'"
    )


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Inside, these environment variables are not set."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
