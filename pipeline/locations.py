"""Where things are: local paths and URIs, opened by pyarrow's file systems, or by fsspec's where pyarrow has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
from pyarrow import fs

from pipeline.errors import JobError
from pipeline.redaction import redact as redact
from pipeline.redaction import redact_all as redact_all
from pipeline.redaction import redact_error


@dataclass(frozen=True, slots=True)
class Location:
    """A place in a file system. `path` is in the file system's own terms; `local` says whether it is a disk here."""

    filesystem: fs.FileSystem
    path: str
    local: bool
    scheme: str

    def child(self, name: str) -> Location:
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", self.local, self.scheme)

    def at(self, path: str) -> Location:
        return Location(self.filesystem, path, self.local, self.scheme)

    @property
    def uri(self) -> str:
        """The place's name without secrets: an absolute path where it is local."""
        if self.local:
            return self.path
        return redact(self.path if "://" in self.path else f"{self.scheme}://{self.path}")


def absolute(name: str, key: str) -> str:
    """A local path made absolute; a URI as it is. Raises JobError for what no file system takes for a path."""
    if not name or "\0" in name or name != name.encode(errors="ignore").decode():
        raise JobError(f"{key} {name!r} is no path: name a file, a folder or a URI")
    try:
        return name if "://" in name else str(Path(name).expanduser().absolute())
    except RuntimeError as error:
        raise JobError(f"{key} {name}: {error}: write the path out") from error


def locate(uri: str, key: str) -> Location:
    """The location that `uri` (or a path relative to the working directory) names; `key` is its place in the job.

    Raises JobError for a scheme that neither pyarrow nor an installed fsspec file system knows.
    """
    name = absolute(uri.removeprefix("file://"), key)
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme == "file":
        return Location(fs.LocalFileSystem(), name, True, "file")
    try:
        filesystem, path = fs.FileSystem.from_uri(_delayed(uri) if scheme == "s3" else uri)
    except (pa.ArrowException, ValueError, OSError):
        filesystem, path = _fsspec(uri, key)
    return Location(filesystem, path.rstrip("/"), False, scheme)


def _delayed(uri: str) -> str:
    """Small files as one request each, so that one that fails leaves no unfinished upload behind."""
    if "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _fsspec(uri: str, key: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except Exception as error:  # every file system's constructor has exceptions of its own
        raise JobError(f"{key} {uri}: no file system for it: {redact_error(error, uri)}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
