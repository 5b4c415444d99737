"""What pipeline raises, and the exit code each kind ends the command with.

    PipelineError               exit code 1
    ├── JobError                exit code 2: the job file, the command line or what they name is wrong
    │   └── OutputRefused       exit code 2: the output folder holds another run, or something that isn't a run
    ├── LeaseHeld               exit code 1: another driver works on this output folder
    ├── SourceError             exit code 1: input that can't be read, though the plan saw it
    ├── StoreError              exit code 1: output that can't be written
    ├── PushError               exit code 1: an upload to the Hub that broke off; the same command goes on
    ├── WorkerError             exit code 1: a worker that cannot start
    │   └── WorkerBroken        never leaves the driver: the worker is replaced
    ├── PartAbandoned           never leaves the driver: the run is being stopped
    └── Interrupted             exit code 1: Ctrl-C or SIGTERM; what was committed stays

Every message says what was wrong, the value, and what to do; secrets in URIs are taken out of it, endless words cut.
"""

import re

from pipeline.redaction import redact

HEAD, TAIL = 2000, 1000
"""Characters of a long message that stay: what was wrong stands at its beginning, what to do at its end."""
_ENDLESS = re.compile(r"(\S{200})\S{800,}")
"""A word as no path is, and what is shown of it."""


class PipelineError(Exception):
    """Root of everything pipeline raises on purpose; the command line prints it without a traceback."""

    exit_code = 1
    event = "failed"
    """What a log in JSON calls it."""

    def __init__(self, message: str) -> None:
        told = _ENDLESS.sub(r"\1…", redact(message))
        super().__init__(told if len(told) <= HEAD + TAIL else f"{told[:HEAD]} … {told[-TAIL:]}")


class JobError(PipelineError):
    """The job file, the command line or what they name is wrong: nothing was started, nothing was written."""

    exit_code = 2


class OutputRefused(JobError):
    """The output folder holds another run, or something that isn't a run of ours."""


class LeaseHeld(PipelineError):
    """Another driver works on this output folder."""


class SourceError(PipelineError):
    """Input that can't be read, or that is not what the plan saw."""


class StoreError(PipelineError):
    """Output that can't be written."""


class PushError(PipelineError):
    """An upload to the Hub that broke off, or that the Hub changed under; the same command goes on."""


class WorkerError(PipelineError):
    """A worker that cannot start: no such device, not enough memory."""


class WorkerBroken(WorkerError):
    """A worker whose engine or device failed in the middle of its rows: nothing can be gone on with there."""


class PartAbandoned(PipelineError):
    """A part that is not committed, since the run is being stopped."""


class Interrupted(PipelineError):
    """Ctrl-C or SIGTERM."""

    event = "interrupted"
