"""Where things are: local paths and URIs, opened by pyarrow's file systems, or by fsspec's where pyarrow has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import fsspec
import pyarrow as pa
from pyarrow import fs

from pipeline.errors import JobError

SHOWN = (
    "scheme",
    "endpoint_override",
    "region",
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "tls_verify_certificates",
)
"""Query options of a URI that may be shown; all others may be secrets."""


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


def absolute(name: str) -> str:
    """A local path made absolute; a URI as it is."""
    return name if "://" in name else str(Path(name).expanduser().absolute())


def locate(uri: str, key: str) -> Location:
    """The location that `uri` (or a path relative to the working directory) names; `key` is its place in the job.

    Raises JobError for a scheme that neither pyarrow nor an installed fsspec file system knows.
    """
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme == "file":
        return Location(fs.LocalFileSystem(), absolute(uri.removeprefix("file://")), True, "file")
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
    except (ValueError, ImportError, OSError) as error:
        raise JobError(f"{key} {redact(uri)}: no file system for it: {redact(str(error))}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def redact(uri: str) -> str:
    """`uri` without user, password and query values that may be secrets, fit for a log."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    query = urlencode([(name, value if name in SHOWN else "***") for name, value in parse_qsl(parts.query)], safe="*/:")
    return urlunsplit((parts.scheme, f"***@{host}" if "@" in parts.netloc else host, parts.path, query, ""))


def redact_all(content: Any) -> Any:
    """`content`, of mappings, lists and plain values, with every URI in it redacted."""
    if isinstance(content, dict):
        return {name: redact_all(value) for name, value in content.items()}
    if isinstance(content, list):
        return [redact_all(value) for value in content]
    return redact(content) if isinstance(content, str) else content
