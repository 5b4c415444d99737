"""The report in a browser: on a phone, a tablet and a desk, in light and dark, for every task over the samples.

Needs Chromium and playwright (`pip install -e '.[browser]'`), and skips where they are missing. PIPELINE_SHOTS names a
folder for pictures of the pages.
"""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.compose import load_job
from pipeline.preflight import prepare
from pipeline.report import write_report
from pipeline.worker import Worker
from tests.pipeline.pages import browser, chromium_path, looks
from tests.pipeline.test_report import wild_run

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
ROWS, ROWS_PER_PART = 24, 6
SHOTS = Path(folder) if (folder := os.environ.get("PIPELINE_SHOTS")) else None


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    pytest.importorskip("playwright")
    if chromium_path() is None:
        pytest.skip("there is no Chromium here")
    with browser() as chromium:
        yield chromium


def done(job: Path, folder: Path) -> Path:
    """The sample job's first rows, done without Ray by a worker in this process; returns the report."""
    overrides = [f"output.path={folder}", f"input.limit={ROWS}", f"output.rows_per_part={ROWS_PER_PART}"]
    prepared = prepare(load_job(job, [*overrides, "cluster.cpus_per_worker=1"]))
    prepared.store.create()
    prepared.store.write_record("plan.json", prepared.plan.to_json())
    worker, waiting = Worker(prepared.spec), deque(prepared.plan.parts())
    worker.start()
    for part in waiting:
        worker.run(part)
    return Path(write_report(str(folder), str(folder.parent / f"{job.stem}.html")))


def assert_sound(seen: dict[str, Any]) -> None:
    assert (seen["complaints"], seen["overlaps"], seen["outside"]) == ([], [], [])
    assert seen["width"] <= seen["screen"]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_no_page_complains_overflows_or_puts_text_on_text(
    job: Path, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    file = done(job, tmp_path / "out")
    for seen in looks(opened, file, SHOTS):
        assert_sound(seen)
        assert seen["drawings"] >= 2
        assert seen["texts"] > 50


def test_wild_rows_make_a_page_as_good_as_any(opened: Any, tmp_path: Path) -> None:
    wild_run(tmp_path)
    file = Path(write_report(str(tmp_path), str(tmp_path / "wild.html")))
    for seen in looks(opened, file, SHOTS):
        assert_sound(seen)


def test_the_look_finds_what_is_wrong_with_a_page(opened: Any, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<p style='position: absolute; top: 0'>one text</p><p style='position: absolute; top: 2px'>another</p>"
        "<div style='width: 900px'>wide</div><script>console.log('hello')</script>"
        "<svg viewBox='0 0 50 20' width='50'><text x='20' y='10'>longer than its drawing</text></svg>"
    )
    seen = next(looks(opened, file))
    assert seen["complaints"] == ["hello"]
    assert seen["width"] > 390
    assert seen["overlaps"]
    assert seen["outside"] == ["longer than its drawing"]
