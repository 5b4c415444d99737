"""A finished run, as its output folder tells it: what may be handed on to others. Needs no job file and no model."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow import fs

from pipeline import lease
from pipeline.committed import committed_parts
from pipeline.errors import OutputRefused
from pipeline.footer import Footer, footer_of
from pipeline.locations import locate
from pipeline.retries import explain
from pipeline.store import READERS, Store


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A folder whose run has ended with every row of its input in a part."""

    store: Store
    fingerprint: str
    identity: Mapping[str, Any]
    """What decided the result, as plan.json holds it."""
    job: Mapping[str, Any]
    """The resolved job, without secrets."""
    summary: Mapping[str, float | int | str | None]
    parts: tuple[fs.FileInfo, ...]
    """In input order."""
    footer: Footer
    """That of the first part."""
    schema: pa.Schema
    rows: int
    errors: int
    """Rows with an error."""


def read_finished(output: str) -> FinishedRun:
    """Read the folder (a path or URI) and the footer of every part in it.

    Raises OutputRefused where it holds no run, or one that has not come to its end.
    """
    store = Store(locate(output, "OUT"))
    plan = store.read_record("plan.json")
    if plan is None or "fingerprint" not in plan:
        raise OutputRefused(f"{store.folder.uri} holds no run (no _pipeline/plan.json in it): give a run's output.path")
    summary = _ended(store)
    parts = tuple(committed_parts(store.listing(), plan))
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(lambda info: _footer(store, info, plan["fingerprint"]), parts))
    rows, errors = sum(footer.rows for footer in footers), sum(footer.errors for footer in footers)
    _check_counts(store, len(parts), rows, errors, plan, summary)
    return FinishedRun(
        store=store,
        fingerprint=plan["fingerprint"],
        identity=plan.get("identity", {}),
        job=_job(store),
        summary=summary,
        parts=parts,
        footer=footers[0],
        schema=_metadata(store, parts[0]).schema.to_arrow_schema().remove_metadata(),
        rows=rows,
        errors=errors,
    )


def _ended(store: Store) -> dict[str, Any]:
    """The figures of the run. Raises OutputRefused where it goes on, or has not come to its end."""
    held = lease.held(store)
    if held is not None and lease.lives(held, store):
        raise OutputRefused(
            f"{store.folder.uri}: its run goes on (process {held['pid']} on {held['host']}): "
            "wait for its end, which `pipeline status` tells"
        )
    summary = store.read_record("summary.json")
    if summary is None:
        raise OutputRefused(
            f"{store.folder.uri}: its run has not finished (no _pipeline/summary.json in it): "
            "`pipeline run` with its job goes on from what is committed"
        )
    return summary


def _check_counts(
    store: Store, parts: int, rows: int, errors: int, plan: Mapping[str, Any], summary: Mapping[str, Any]
) -> None:
    counted = (rows, errors)
    said = (summary.get("rows"), summary.get("rows with an error"))
    planned = plan.get("parts")
    if parts and counted == said and planned in (None, parts) and plan.get("rows") in (None, rows):
        return
    of = "" if planned is None else f" of {planned:,}"
    raise OutputRefused(
        f"{store.folder.uri} holds {parts:,}{of} parts with {rows:,} rows, {errors:,} with an error, and its run ended "
        f"with {said[0]} rows, {said[1]} with an error: `pipeline run` with its job does what is missing and counts"
    )


def _footer(store: Store, info: fs.FileInfo, fingerprint: str) -> Footer:
    footer = footer_of(_metadata(store, info))
    if footer is None or (footer.fingerprint, footer.part) != (fingerprint, info.base_name):
        place = store.folder.child(info.base_name).uri
        raise OutputRefused(f"{place} was not written by this run: `pipeline verify` with its job tells what is wrong")
    return footer


def _metadata(store: Store, info: fs.FileInfo) -> pq.FileMetaData:
    def read() -> pq.FileMetaData:
        with store.folder.filesystem.open_input_file(info.path) as opened:
            return pq.read_metadata(opened)

    try:
        return store.backoff.call(read)
    except (pa.ArrowException, OSError) as error:
        place = store.folder.child(info.base_name).uri
        raise OutputRefused(f"{place} can't be read as Parquet: {explain(error)}") from error


def _job(store: Store) -> dict[str, Any]:
    try:
        job = yaml.safe_load(store.read_whole(store.records.child("job.yaml").path))
    except yaml.YAMLError as error:
        raise OutputRefused(f"{store.records.child('job.yaml').uri} is not valid YAML: {error}") from error
    return job if isinstance(job, dict) else {}
