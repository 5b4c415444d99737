"""A part's digest: SHA-256 over the whole file, the digest's own 64 characters in the footer taken as zeros.

So it covers the Parquet footer as well as the data pages, though it stands in the footer itself.
"""

from __future__ import annotations

import hashlib
import os
from io import BufferedRandom

BLANK = "0" * 64
"""What stands in the footer's `digest` until the file is sealed."""
KEY = b'"digest": "'


def seal(file: BufferedRandom) -> str:
    """Put the digest into a whole file whose footer holds BLANK for it; returns the digest."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(4), "little")
    start = file.seek(-8 - length, os.SEEK_END)
    file.seek(start + _place(file.read(length)))
    file.write(digest.encode())
    file.flush()
    return digest


def digests(content: bytes) -> tuple[str, str] | None:
    """The digest that a file's content carries and the one that it has; None where it carries none.

    Both are found without parsing the Parquet footer, which may be damaged.
    """
    place = _place(content)
    held = content[place : place + len(BLANK)]
    if place < len(KEY) or len(held) < len(BLANK):
        return None
    view = memoryview(content)
    found = hashlib.sha256(view[:place])
    found.update(BLANK.encode())
    found.update(view[place + len(BLANK) :])
    return held.decode("ascii", "replace"), found.hexdigest()


def _place(content: bytes) -> int:
    """Where the digest stands: key-value metadata come last in a Parquet footer, so no text of the rows is behind."""
    return content.rfind(KEY) + len(KEY)
