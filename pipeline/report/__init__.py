"""`pipeline report`: one HTML file about a run's output folder, from what stands in the folder alone."""

from __future__ import annotations

from importlib.util import find_spec

import pyarrow as pa

from pipeline.errors import JobError, StoreError
from pipeline.locations import Location, locate
from pipeline.retries import explain

NAME = "report.html"
NEEDED = ("altair", "vl_convert", "jinja2")


def write_report(output: str, target: str | None = None) -> str:
    """Write the report on the run in folder `output` (a path or URI) to `target`; returns where it is.

    Without a target it goes beside the run's records in a local folder, and into the working directory for a URI.
    Raises OutputRefused where the folder holds no run, StoreError for what can't be read or written, and JobError where
    the libraries that draw are not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise JobError(
            f"a report needs {', '.join(missing)}, which is not installed: pip install 'gpt2-pipeline[report]'"
        )
    from pipeline.report.folder import read_folder
    from pipeline.report.gather import gather
    from pipeline.report.page import page

    folder = read_folder(output)
    place = locate(target, "--output") if target else _beside(folder.store.records)
    content = page(gather(folder)).encode(errors="replace")
    _write(place, content)
    return place.uri


def _beside(records: Location) -> Location:
    return records.child(NAME) if records.local else locate(NAME, "--output")


def _write(place: Location, content: bytes) -> None:
    try:
        with place.filesystem.open_output_stream(place.path) as stream:
            stream.write(content)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"the report {place.uri} can't be written: {explain(error)}: name another place by --output"
        ) from error
