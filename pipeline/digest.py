"""A part's digest: SHA-256 over the whole file, the digest's own 64 characters in the footer taken as zeros.

So it covers the Parquet footer as well as the data pages, though it stands in the footer itself.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

BLANK = "0" * 64
"""What stands in the footer's `digest` until the file is sealed."""
KEY = b'"digest": "'


def seal(file: Path) -> str:
    """Put the digest into a closed file whose footer holds BLANK for it; returns the digest."""
    with file.open("r+b") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        opened.seek(-8, 2)
        length = int.from_bytes(opened.read(4), "little")
        start = opened.seek(-8 - length, 2)
        opened.seek(start + _place(opened.read(length)))
        opened.write(digest.encode())
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
