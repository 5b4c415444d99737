"""Where the output goes, seen from outside: what is visible there, and what should not have been left."""

from __future__ import annotations

import re
from pathlib import Path

from pyarrow import fs

from pipeline.locations import Location, locate
from tests.pipeline.faulty_s3 import FaultyS3

TEMPORARY = re.compile(r"(\.json|\.yaml)\..+|^lease\.json$")
"""Drafts of records, and the lease."""


class Place:
    """An output folder, local or on an object store, whose server can be told to fail."""

    def __init__(self, uri: str, server: FaultyS3 | None = None) -> None:
        self.uri, self.server = uri, server
        self.folder: Location = locate(uri, "output.path")

    def names(self) -> list[str]:
        """The parts that are committed."""
        return sorted(name for name in self._list("") if not name.startswith("_"))

    def files(self) -> dict[str, bytes]:
        """The committed parts, byte for byte."""
        filesystem = self.folder.filesystem
        return {name: filesystem.open_input_file(f"{self.folder.path}/{name}").readall() for name in self.names()}

    def left(self) -> list[str]:
        """Staged files, drafts and leases."""
        records = [name for name in self._list("/_pipeline") if TEMPORARY.search(name)]
        return self._list("/_pipeline/staging") + records

    def litter(self, name: str, content: bytes) -> bool:
        """Put a file where drivers that were killed may leave one; only on a disk, where they do."""
        if self.folder.local:
            file = Path(self.folder.path, "_pipeline", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return self.folder.local

    def _list(self, below: str) -> list[str]:
        selector = fs.FileSelector(self.folder.path + below, allow_not_found=True)
        return [info.base_name for info in self.folder.filesystem.get_file_info(selector)]
