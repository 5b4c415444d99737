"""The committed parts of a folder, by what its own plan.json tells of them: for those who have no job at hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pyarrow import fs


def committed_parts(listing: Mapping[str, fs.FileInfo], plan: Mapping[str, Any]) -> list[fs.FileInfo]:
    """What of a folder's listing are parts of its run, in input order; those of retired splits are not.

    `plan` is what `_pipeline/plan.json` holds. Names are compared by their numbers: beyond 99,999 they grow a digit.
    """
    ours = re.compile(rf"part-(\d+)(?:-(\d+))?-{re.escape(plan['fingerprint'][:10])}\.parquet")
    retired, found = set(_retired(plan)), []
    for name, info in listing.items():
        match = ours.fullmatch(name)
        if match and int(match[1]) not in retired:
            found.append(((int(match[1]), int(match[2] or 0)), info))
    return [info for _, info in sorted(found, key=lambda each: each[0])]


def _retired(plan: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of the parts of retired splits; only runs whose parts are all numbered through have such."""
    first = 0
    for split in plan.get("splits", []):
        count = -(-(split["rows"] or 0) // plan["rows_per_part"])
        if split.get("retired"):
            yield from range(first, first + count)
        first += count
