"""What `pipeline verify` finds: whether the output folder holds every row of the input once, as it was committed.

Reads every byte of every part, and writes nothing. Needs no Ray and loads no weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline import lease
from pipeline.digest import digests
from pipeline.errors import OutputRefused
from pipeline.figures import format_figure
from pipeline.footer import Footer, footer_of
from pipeline.listing import Listing
from pipeline.plan import Part, Plan
from pipeline.preflight import Prepared
from pipeline.redaction import redact
from pipeline.steps import failed_steps, places_of_columns
from pipeline.store import CHUNK, RECORDS, Store, standing_parts

READERS = 8
"""Files read at once; each is held in memory whole."""
AGAIN = "move it away, and `pipeline run` with the same job does the part again"
AWAY = "move it away: whoever reads the folder takes it for output"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or in a note worth knowing."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: {self.remedy}"


@dataclass(slots=True)
class Verdict:
    """What was found, and what was counted of the parts that are sound."""

    rows_planned: int | None
    parts_planned: int | None
    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    parts: int = 0
    rows: int = 0
    errors: int = 0
    bytes: int = 0

    @property
    def sound(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        return {"sound": self.sound, **asdict(self)}

    def __str__(self) -> str:
        """A line for each finding and note, and a last one with the counts."""
        parts = "" if self.parts_planned is None else f" of {self.parts_planned:,}"
        rows = "" if self.rows_planned is None else f" of {self.rows_planned:,}"
        head = "sound" if self.sound else f"{len(self.findings):,} finding{'s' * (len(self.findings) > 1)}"
        counts = f"{head}: {self.parts:,}{parts} parts and {self.rows:,}{rows} rows are right, "
        counts += f"{self.errors:,} rows with an error, {format_figure(self.bytes / 2**20)} MiB read"
        return "\n".join([*map(str, self.findings), *(f"note: {each}" for each in self.notes), counts])


class _Unsound(Exception):
    """Why a part isn't what the plan wants."""


def verify(prepared: Prepared) -> Verdict:
    """Check the whole output folder of the job. Raises OutputRefused where it holds another run, or none."""
    plan, store = prepared.as_recorded().plan, prepared.store
    if not store.opened(plan):
        raise OutputRefused(f"output.path {store.folder.uri} holds no run yet: `pipeline run` with this job begins it")
    verdict = Verdict(plan.rows, plan.num_parts)
    _check_driver(store, verdict)
    _note_growth(prepared, verdict)
    listing = store.listing()
    check = _PartCheck(store, plan, {each.step.name: len(each.task.fields) for each in prepared.steps})
    standing = _check_parts(check, listing, verdict)
    verdict.findings += [_missing(store, part) for part in plan.parts() if part.name not in listing]
    strangers = [info for name, info in listing.items() if name not in standing and name != RECORDS]
    verdict.findings += [_stranger(store, plan, info) for info in strangers]
    if verdict.sound and plan.rows is not None and verdict.rows != plan.rows:
        what = f"its parts hold {verdict.rows:,} rows and the input {plan.rows:,}"
        verdict.findings.append(Finding(store.folder.uri, what, "run into a new output.path"))
    return verdict


def _check_driver(store: Store, verdict: Verdict) -> None:
    """Whether somebody is at work; what lies in staging is his, or else what killed attempts left."""
    held = lease.held(store)
    if held is not None and lease.lives(held, store):
        what = f"a run is going on (process {held['pid']} on {held['host']})"
        place = store.records.child(lease.NAME).uri
        verdict.findings.append(Finding(place, what, "verify again when it has ended"))
        return
    staging = store.records.child("staging")
    left_over = staging.filesystem.get_file_info(fs.FileSelector(staging.path, allow_not_found=True))
    if left_over:
        what = f"{len(left_over)} file{'s' * (len(left_over) > 1)} that killed attempts left"
        verdict.notes.append(Finding(staging.uri, what, "they harm nobody, and the next run clears them"))


def _note_growth(prepared: Prepared, verdict: Verdict) -> None:
    """What of a growing input is not what it was when the last round ended."""
    if prepared.growth is None:
        return
    place, new = redact(str(prepared.job.input.parquet)), prepared.growth.since(prepared.plan)
    if new.splits:
        what = f"{len(new.splits):,} new or changed files with {new.rows:,} rows are not in the output yet"
        verdict.notes.append(Finding(place, what, "`pipeline run` with the same job does them"))
    verdict.notes += [
        Finding(place, note, "input.changed and input.vanished say what a run does then")
        for note in prepared.growth.notes()
    ]


def _check_parts(check: _PartCheck, listing: Listing, verdict: Verdict) -> set[str]:
    """Check every part of the plan that stands in the folder; returns their names."""
    plan, standing, last = check.plan, set[str](), dict[int, tuple[Part, int | None]]()
    parts = standing_parts(plan, listing)
    with ThreadPoolExecutor(READERS) as pool:
        while chunk := list(islice(parts, CHUNK)):
            for part, found in zip(chunk, pool.map(lambda part: check(part, listing[part.name]), chunk), strict=True):
                if _ended(plan, last.get(part.split.index)):
                    continue  # a stranger: its shard ends before it
                standing.add(part.name)
                last[part.split.index] = (part, None if isinstance(found, Finding) else found.rows)
                if isinstance(found, Finding):
                    verdict.findings.append(found)
                else:
                    verdict.parts += 1
                    verdict.rows += found.rows
                    verdict.errors += found.errors
                    verdict.bytes += listing[part.name].size
    for part, rows in last.values():
        following = None if rows is None else plan.following(part, rows)
        if following is not None:
            verdict.findings.append(_missing(check.store, following))
    return standing


def _ended(plan: Plan, last: tuple[Part, int | None] | None) -> bool:
    """Whether a streamed split came to its end with the part that was seen last of it."""
    if last is None or last[0].split.rows is not None or last[1] is None:
        return False
    return plan.following(last[0], last[1]) is None


def _missing(store: Store, part: Part) -> Finding:
    stop = part.stop if part.split.rows is not None else "its end"
    what = f"is missing ({part.split.name}, rows {part.start} to {stop})"
    return Finding(store.folder.child(part.name).uri, what, "`pipeline run` with the same job does it")


class _PartCheck:
    """Checks one part after another: its footer where it is sound, else a finding."""

    def __init__(self, store: Store, plan: Plan, widths: Mapping[str, int]) -> None:
        """`widths`: how many result columns each step has, by its name."""
        self.store, self.plan = store, plan
        self.columns = places_of_columns(len(plan.schema), widths)
        self.schema = _as_stored(plan.schema)

    def __call__(self, part: Part, info: fs.FileInfo) -> Footer | Finding:
        place = self.store.folder.child(part.name)
        try:
            content = _read(self.store, info)
            _check_bytes(content)
            file = pq.ParquetFile(pa.BufferReader(content))
            footer = self._footer(part, file.metadata)
            self._schema(file.schema_arrow)
            self._errors(file, footer)
        except (_Unsound, pa.ArrowException, OSError) as error:
            return Finding(place.uri, " ".join(str(error).split()), AGAIN)
        return footer

    def _footer(self, part: Part, metadata: pq.FileMetaData) -> Footer:
        footer = footer_of(metadata)
        if footer is None:
            raise _Unsound("its footer does not say which part it is")
        if footer.fingerprint != self.plan.fingerprint:
            raise _Unsound(f"belongs to another run ({footer.fingerprint[:10]})")
        if footer.part != part.name:
            raise _Unsound(f"holds {footer.part}")
        if (footer.source, footer.start) != (part.split.name, part.start):
            wanted = f"{part.start} of {part.split.name}"
            raise _Unsound(f"holds rows from {footer.start} of {footer.source}, not from {wanted}")
        if metadata.num_rows != footer.rows:
            raise _Unsound(f"holds {metadata.num_rows} rows, and its footer says {footer.rows}")
        planned = part.stop - part.start
        if footer.rows > planned or (part.split.rows is not None and footer.rows != planned):
            raise _Unsound(f"holds {footer.rows} rows, and the plan wants {planned}")
        return footer

    def _schema(self, held: pa.Schema) -> None:
        if held.equals(self.schema):
            return
        if held.names != self.schema.names:
            raise _Unsound(f"has the columns {', '.join(held.names)}, not {', '.join(self.schema.names)}")
        one, other = next((a, b) for a, b in zip(held, self.schema, strict=True) if not a.equals(b))
        raise _Unsound(f"has another schema than the plan: {one}, not {other}")

    def _errors(self, file: pq.ParquetFile, footer: Footer) -> None:
        """A row has an error of a step or its results, and the footer counts the rows with errors."""
        errors = first = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            reasons = table.column(table.num_columns - 1)
            if failures := table.num_rows - reasons.null_count:
                told = [() if each is None else failed_steps(each, self.columns) for each in reasons.to_pylist()]
                self._either_or(table, told, first)
            errors += failures
            first += table.num_rows
        if errors != footer.errors:
            raise _Unsound(f"has {errors} rows with an error, and its footer says {footer.errors}")

    def _either_or(self, table: pa.Table, told: Sequence[Collection[str]], first: int) -> None:
        """`told`: of each row of a row group that begins at row `first`, the steps that failed in it."""
        for name, places in self.columns.items():
            failed = pa.array([name in names for names in told], pa.bool_())
            for place in places:
                both = pc.index(pc.and_(failed, table.column(place).combine_chunks().is_valid()), True).as_py()
                if both >= 0:
                    raise _Unsound(f"row {first + both} has an error, and a value in {table.column_names[place]!r}")


def _as_stored(schema: pa.Schema) -> pa.Schema:
    """The schema as Parquet gives it back; of some types it keeps another form."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    return pq.read_schema(pa.BufferReader(sink.getvalue()))


def _read(store: Store, info: fs.FileInfo) -> bytes:
    if info.type != fs.FileType.File:
        raise _Unsound("is no file")
    if info.size == 0:
        raise _Unsound("is empty (0 bytes)")
    return store.read_whole(info.path)


def _check_bytes(content: bytes) -> None:
    """Against the digest, before anything in them is believed."""
    if content[-4:] != b"PAR1" or content[:4] != b"PAR1":
        raise _Unsound("is not a whole Parquet file")
    found = digests(content)
    if found is None:
        raise _Unsound("carries no digest, so it was not written by a run")
    written, read = found
    if written != read:
        raise _Unsound(f"was changed after it was committed (SHA-256 {read[:10]}…, not {written[:10]}…)")


def _stranger(store: Store, plan: Plan, info: fs.FileInfo) -> Finding:
    """Something in the folder that isn't one of the plan's parts."""
    place = store.folder.child(info.base_name)
    if info.type != fs.FileType.File:
        return Finding(place.uri, "a foreign folder", AWAY)
    footer = _footer_of(store, info)
    if footer is None:
        return Finding(place.uri, "a foreign file", AWAY)
    if footer.fingerprint != plan.fingerprint:
        return Finding(place.uri, f"a part of another run ({footer.fingerprint[:10]})", AWAY)
    retired = next((part for part in plan.retired() if part.name == info.base_name), None)
    if retired is not None:
        return Finding(place.uri, f"holds the earlier state of {retired.split.name}", "the next run takes it away")
    if footer.part != info.base_name:
        return Finding(place.uri, f"a copy of {footer.part}, whose rows are there twice", AWAY)
    return Finding(place.uri, "a part of this run, but its shard ends before it, or a part before it is missing", AWAY)


def _footer_of(store: Store, info: fs.FileInfo) -> Footer | None:
    content = store.read_whole(info.path)
    try:
        return footer_of(pq.read_metadata(pa.BufferReader(content)))
    except (pa.ArrowException, OSError):
        return None
