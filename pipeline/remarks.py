"""What the model has to say to whoever runs the job: gpt2model's warnings in a worker, on their way to the driver."""

from __future__ import annotations

import logging


class Remarks(logging.Handler):
    """Warnings, each told once; of records that are logged by any thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.setdefault(record.getMessage())

    def so_far(self) -> tuple[str, ...]:
        """All since the start, in their order."""
        return tuple(self._heard)
