"""How far an upload is: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

LOG_SECONDS = 10.0


class UploadWatch:
    """Shows parts and bytes, on stderr."""

    def __init__(self, doing: str, console: Console | None = None) -> None:
        """`doing`: uploaded, or written."""
        self.doing, self.console = doing, console or Console(stderr=True)
        self.parts = self.bytes = self.of_parts = self.of_bytes = 0
        self._logged = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
            self._bar = Progress(TextColumn("{task.description}"), *columns, console=self.console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.of_parts:
            self._tell()

    def begin(self, parts: int, size: int) -> None:
        """So many parts of so many bytes in all."""
        self.of_parts, self.of_bytes = parts, size
        if self._bar is not None:
            self._task = self._bar.add_task(self._description(), total=size)

    def advance(self, parts: int, size: int) -> None:
        """So many more are there, whether sent now or before."""
        self.parts += parts
        self.bytes += size
        if self._bar is not None:
            self._bar.update(self._task, completed=self.bytes, description=self._description())
        elif time.monotonic() - self._logged >= LOG_SECONDS:
            self._tell()

    def log(self, message: str) -> None:
        """One line, with the time of day where it goes to a log."""
        stamp = "" if self.console.is_terminal else time.strftime("%H:%M:%S ")
        self.console.print(f"{stamp}{message}", markup=False, highlight=False, soft_wrap=True)

    def _tell(self) -> None:
        self._logged = time.monotonic()
        size = f"{self.bytes / 2**20:,.1f} of {self.of_bytes / 2**20:,.1f} MiB"
        self.log(f"{self._description()}, {size}")

    def _description(self) -> str:
        return f"{self.doing} {self.parts:,} of {self.of_parts:,} parts"
