"""What the model has to say to whoever runs the job: gpt2model's warnings in a worker, on their way to the driver."""

from __future__ import annotations

import logging
from functools import cache

from pipeline.redaction import redact


class Remarks(logging.Handler):
    """Warnings, each once and on one line; they stay in the worker's own log as well. For any threads."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._heard.setdefault(redact(" ".join(record.getMessage().split())))
        except Exception:
            self.handleError(record)
        # Python's last resort is for records that no handler takes: this one is not to hide them.
        if logging.lastResort is not None and not logging.root.handlers:
            logging.lastResort.handle(record)

    def so_far(self) -> tuple[str, ...]:
        """All since the start, in their order."""
        return tuple(self._heard)


@cache
def of_this_process() -> Remarks:
    """What hears the models of this process, from the first call on."""
    remarks = Remarks()
    logging.getLogger("gpt2model").addHandler(remarks)
    return remarks
