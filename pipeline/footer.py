"""What the Parquet footer of a part says of it, besides what Parquet says itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.parquet as pq

FOOTER_KEY = b"pipeline"


@dataclass(frozen=True, slots=True)
class Footer:
    """What the Parquet footer of a part says of it."""

    fingerprint: str
    part: str
    source: str
    start: int
    rows: int
    errors: int
    figures: Mapping[str, float]
    """The task's figures, summed over the part's rows."""
    model: str
    revision: str | None
    device: str
    dtype: str
    version: str
    digest: str = ""
    """SHA-256 of the whole file (digest.py); the commit fills it in."""


def footer_of(metadata: pq.FileMetaData) -> Footer | None:
    """What a Parquet footer says of a part of ours; None where it says nothing of the kind."""
    try:
        return Footer(**json.loads(metadata.metadata[FOOTER_KEY]))
    except (KeyError, TypeError, ValueError):
        return None
