"""`pipeline report` tells of a run's rows from the output folder alone, in one file that no row can break."""

import html
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

import pipeline.report as report
from pipeline.cli import main
from pipeline.footer import Footer
from pipeline.locations import locate
from pipeline.plan import Plan
from pipeline.report.folder import read_folder
from pipeline.report.gather import Findings, gather
from pipeline.report.histogram import MOST_BINS, Histogram
from pipeline.report.measures import Address, Extremes, Labels, Numbers
from pipeline.report.overview import rates
from pipeline.report.page import page as page_of
from pipeline.report.steps import steps_of
from pipeline.report.texts import blocks_of
from pipeline.report.values import Text, short_value
from pipeline.sources import Split
from pipeline.store import Store
from tests.pipeline.buckets import SECRET
from tests.pipeline.buckets import bucket as bucket
from tests.pipeline.test_store import store_at

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'</td></style>"
FIVE_MB = 5_000_000


def written(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def text_of(folder: Path) -> str:
    done = written(folder)
    assert done.exit_code == 0, done.output
    file = Path(done.stdout.strip())
    assert file == folder / "_pipeline" / "report.html"
    return file.read_text()


def make_run(
    folder: Path | Store, tables: list[pa.Table], inputs: Mapping[str, str], kept: list[str], **job: Any
) -> Store:
    """A folder in which each table is a committed part."""
    store = folder if isinstance(folder, Store) else store_at(folder)
    size = max((table.num_rows for table in tables), default=1) or 1
    identity = {"task": job.get("task"), "input": {"columns": dict(inputs)}, "output": {"columns": kept}}
    rows = sum(table.num_rows for table in tables)
    schema = tables[0].schema if tables else pa.schema([])
    plan = Plan(identity, (Split(0, "rows.parquet", rows, {}),), size, None, tuple(kept), schema)
    store.write_record("plan.json", plan.to_json())
    store.write_record("job.yaml", yaml.safe_dump({"model": {"path": "gpt2"}, **job}, sort_keys=False))
    for part, table in zip(plan.parts(), tables, strict=False):
        with store.stage(part, schema) as staged:
            staged.write(table)
            staged.commit(
                Footer(
                    plan.fingerprint,
                    part.name,
                    part.split.name,
                    part.start,
                    table.num_rows,
                    table.num_rows - table["error"].null_count,
                    {"tokens": 10.0},
                    "gpt2",
                    None,
                    "cpu",
                    "float32",
                    "0.1.0",
                )
            )
    return store


def score_table(texts: list[str | None], perplexity: list[float | None], errors: list[str | None]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(range(len(texts)), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "perplexity": pa.array(perplexity, pa.float64()),
            "num_tokens": pa.array([len(text or "") for text in texts], pa.int32()),
            "error": pa.array(errors, pa.string()),
        }
    )


def score_run(folder: Path | Store, parts: int = 3) -> Store:
    """Rows of perplexity 1, 2, 3, …, of which every tenth has an error."""
    tables = []
    for part in range(parts):
        numbers = range(part * 20, part * 20 + 20)
        bad = [number % 10 == 3 for number in numbers]
        tables.append(
            score_table(
                [None if wrong else f"text number {number}" for number, wrong in zip(numbers, bad, strict=True)],
                [None if wrong else number + 1.0 for number, wrong in zip(numbers, bad, strict=True)],
                [f"text is null, they say {number} times" if number % 10 == 3 else None for number in numbers],
            )
        )
    return make_run(folder, tables, {"text": "text"}, ["id", "text"], task="score")


def found(folder: Path) -> Findings:
    return gather(read_folder(str(folder)))


class Tags(HTMLParser):
    """The elements of a page, and its attributes that make a browser load or run something."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.active: list[tuple[str, str | None]] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.active += [each for each in attrs if each[0] in {"src", "srcset", "action"} or each[0].startswith("on")]
        self.active += [each for each in attrs if each[0] in {"href", "xlink:href"} and each[1] != "data:,"]


def test_the_rows_at_both_ends_are_the_right_ones_with_their_texts(tmp_path: Path) -> None:
    score_run(tmp_path)
    findings = found(tmp_path)
    (ends,) = [measure for measure in findings.steps[0].measures if isinstance(measure, Extremes)]
    assert [value for value, _ in ends.lowest] == [1, 2, 3, 5, 6, 7, 8, 9]
    assert [value for value, _ in ends.highest] == [60, 59, 58, 57, 56, 55, 53, 52]
    assert ends.highest[0][1] == Address(2, 19)
    assert findings.rows[Address(2, 19)]["text"] == Text("text number 59", 14)
    page = text_of(tmp_path)
    assert "Least likely rows" in page
    assert "text number 59" in page
    assert "rows.parquet, row 59" in page


def test_errors_are_counted_by_kind_whatever_number_is_in_them(tmp_path: Path) -> None:
    score_run(tmp_path)
    errors = found(tmp_path).errors
    assert errors is not None
    assert [(kind.text, kind.count) for kind in errors.kinds.values()] == [("text is null, they say N times", 6)]
    page = text_of(tmp_path)
    assert "they say 3 times" in page
    assert "10 %" in page


def test_the_same_rows_are_drawn_in_every_report(tmp_path: Path) -> None:
    score_run(tmp_path)
    once, again = found(tmp_path), found(tmp_path)
    assert once.samples == again.samples
    assert len(set(once.samples)) == 10
    assert set(once.samples) <= set(once.rows)


def test_what_rows_hold_is_text_and_nothing_else(tmp_path: Path) -> None:
    rows = 30
    entities = [[{"entity_group": EVIL, "score": 0.5, "word": EVIL, "start": 0, "end": 8}]] * rows
    table = pa.table(
        {
            EVIL: [EVIL] * rows,
            "text": [EVIL] * rows,
            "entities": entities,
            "error": pa.array([EVIL if row % 2 else None for row in range(rows)], pa.string()),
        }
    )
    make_run(tmp_path, [table], {"text": "text"}, [EVIL, "text"], task="ner", note=EVIL)
    page = text_of(tmp_path)
    tags = Tags(page)
    assert not {"script", "img", "iframe", "object", "embed"} & tags.names
    assert tags.active == []
    assert html.escape("<script>alert(1)</script>") in page
    assert "default-src 'none'" in page


def wild_run(folder: Path) -> int:
    """Cells of 10 million characters, hundreds of labels and kinds of errors, markup and controls; returns the rows."""
    rows = 400
    long = "é" * 10_000_000
    table = pa.table(
        {
            "text": [long if row == 7 else "\x00\u202e\n" * row for row in range(rows)],
            "note": [long if row == 8 else EVIL for row in range(rows)],
            "label": [long if row == 9 else f"{EVIL} {row}" for row in range(rows)],
            "score": pa.array([math.nan, math.inf, *(row / 7 for row in range(2, rows))], pa.float32()),
            "error": pa.array([long if row == 10 else f"kind {chr(200 + row)}" for row in range(rows)], pa.string()),
        }
    )
    make_run(folder, [table], {"text": "text"}, ["text", "note"], task="classify")
    return rows


def test_wild_rows_leave_the_page_small(tmp_path: Path) -> None:
    rows = wild_run(tmp_path)
    findings = found(tmp_path)
    page = page_of(findings)
    assert len(page.encode()) < FIVE_MB / 5
    labels = next(each for each in findings.steps[0].measures if isinstance(each, Labels))
    assert labels.counts.total() == rows
    assert max(map(len, labels.counts)) <= 120
    assert "2 infinite or not a number" in page


def test_a_text_that_is_no_utf8_is_shown_all_the_same(tmp_path: Path) -> None:
    table = score_table(["x"], [2.0], [None])
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"bad \xff end"], pa.binary()).buffers())
    make_run(tmp_path, [table.set_column(1, "text", bad)], {"text": "text"}, ["id", "text"], task="score")
    assert "bad \ufffd end" in text_of(tmp_path)


TASKS: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any], list[str]]] = {
    "generate": (
        {"text": ["Once upon", "Then"]},
        {"text": "text"},
        {"generated_text": [" a time", None], "finish_reason": ["eos", None], "num_generated_tokens": [2, None]},
        ['<span class="prompt">Once upon</span><span class="generated"> a time</span>', "Why generation ended"],
    ),
    "classify": (
        {"text": ["fine", "bad"]},
        {"text": "text"},
        {"label": ["good", "poor"], "score": pa.array([0.9, 0.6], pa.float32())},
        ["Least certain rows", "good", "poor"],
    ),
    "ner": (
        {"text": ["Ann met Bob", "nobody"]},
        {"text": "text"},
        {"entities": [[{"entity_group": "PER", "score": 0.9, "word": "Bob", "start": 8, "end": 11}], []]},
        ['Ann met <span class="entity">Bob<span class="mark">PER</span></span>', "Entities by group"],
    ),
    "qa": (
        {"question": ["Who?", "Why?"], "context": ["It was Ann.", "Nothing."]},
        {"question": "question", "context": "context"},
        {"answer": ["Ann", ""], "start": [7, 0], "end": [10, 0], "score": pa.array([0.9, 0.6], pa.float32())},
        ['It was <span class="answer">Ann</span>.', "Is there an answer?"],
    ),
    "choose": (
        {"prompt": ["One", "Two"], "choices": [["a b", "c d"], ["e", "f"]]},
        {"prompt": "prompt", "choices": "choices"},
        {"choice": pa.array([1, 0], pa.int32()), "scores": [[-2.0, -1.0], [-1.0, -9.0]]},
        ['<span class="chosen">c d</span>', "Closest calls"],
    ),
    "embed": (
        {"text": ["a", "b"]},
        {"text": "text"},
        {"embedding": pa.array([[3.0, 4.0], [0.0, 5.0]], pa.list_(pa.float32(), 2))},
        ["Norm of a vector", "mean cosine of two rows", "0.800"],
    ),
}


@pytest.mark.parametrize("prefix", ["", "my_"])
@pytest.mark.parametrize("task", TASKS)
def test_each_task_shows_its_results_where_they_belong(tmp_path: Path, task: str, prefix: str) -> None:
    given, inputs, results, expected = TASKS[task]
    named = {prefix + name: values for name, values in results.items()}
    table = pa.table({**given, **named, f"{prefix}error": pa.nulls(2, pa.string())})
    table = table.rename_columns([*given, *named, "error"])
    make_run(tmp_path, [table], inputs, list(given), task=task, output={"prefix": prefix})
    page = text_of(tmp_path)
    for each in expected:
        assert each in page


def test_each_step_has_a_section_and_its_own_columns(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["Ann", None],
            "topic_label": ["people", None],
            "topic_score": [0.9, None],
            "topic_too_label": ["persons", None],
            "entities_entities": [[{"entity_group": "PER", "score": 0.9, "word": "Ann", "start": 0, "end": 3}], None],
            "error": [None, "topic: text is null"],
        }
    )
    steps = {
        "topic": {"task": "classify", "prefix": "topic_", "model": {"path": "gpt2-topic"}},
        "again": {"task": "classify", "prefix": "topic_too_"},
        "entities": {"task": "ner"},
    }
    make_run(tmp_path, [table], {}, ["text"], steps=steps)
    findings = found(tmp_path)
    assert [dict(step.columns) for step in findings.steps] == [
        {"label": "topic_label", "score": "topic_score"},
        {"label": "topic_too_label"},
        {"entities": "entities_entities"},
    ]
    page = text_of(tmp_path)
    assert '<span class="step">entities</span> What is named in each text?' in page
    assert "topic: text is null" in page
    assert "classify · gpt2-topic" in page
    assert '<span class="entity">Ann<span class="mark">PER</span></span>' in page


def test_without_a_job_file_the_plan_tells_the_task() -> None:
    plan = {"identity": {"task": "score", "input": {"columns": {"text": "body"}}, "output": {"prefix": "p_"}}}
    (step,) = steps_of({}, plan)
    assert (step.task, step.prefix, dict(step.inputs)) == ("score", "p_", {"text": "body"})


def test_a_run_without_a_part_is_told_of_all_the_same(tmp_path: Path) -> None:
    make_run(tmp_path, [], {}, [], task="score")
    assert "No part is committed yet" in text_of(tmp_path)


def test_a_run_without_rows_is_told_of_all_the_same(tmp_path: Path) -> None:
    make_run(tmp_path, [score_table([], [], [])], {"text": "text"}, ["id", "text"], task="score")
    assert "How likely is each text?" in text_of(tmp_path)


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    score_run(tmp_path)
    (tmp_path / "_pipeline" / "progress.json").write_text(json.dumps({"state": "failed", "reason": "the disk is full"}))
    assert "The run is not finished: the disk is full." in text_of(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = written(tmp_path)
    assert done.exit_code == 2
    assert "holds no run" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_torn_is_named(tmp_path: Path) -> None:
    score_run(tmp_path)
    part = sorted(tmp_path.glob("part-*"))[1]
    os.truncate(part, part.stat().st_size // 2)
    done = written(tmp_path)
    assert done.exit_code == 1
    assert part.name in done.stderr
    assert "pipeline verify" in done.stderr
    assert not (tmp_path / "_pipeline" / "report.html").exists()


def test_the_report_goes_where_it_is_told(tmp_path: Path) -> None:
    score_run(tmp_path / "out")
    place = tmp_path / "elsewhere.html"
    assert written(tmp_path / "out", "--output", place).stdout.strip() == str(place)
    assert place.read_text().startswith("<!doctype html>")
    done = written(tmp_path / "out", "--output", tmp_path / "no folder" / "report.html")
    assert done.exit_code == 1
    assert "name another place by --output" in done.stderr


def test_a_run_on_s3_is_reported_into_the_working_directory_without_secrets(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_run(Store(locate(bucket.format("/run"), "x")))
    monkeypatch.chdir(tmp_path)
    done = written(bucket.format("/run"))
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    assert "text number 59" in page
    assert "s3://bucket/run" in page
    assert SECRET not in page
    done = written(bucket.format("/run"), "--output", bucket.format("/there.html"))
    assert done.stdout.strip() == "s3://bucket/there.html"
    there = locate(bucket.format("/there.html"), "x")
    with there.filesystem.open_input_stream(there.path) as stream:
        assert stream.read().startswith(b"<!doctype html>")


def test_without_the_library_that_draws_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "NEEDED", ("no_such_library",))
    done = written(tmp_path)
    assert done.exit_code == 2
    assert "pip install 'gpt2-pipeline[report]'" in done.stderr


def test_a_report_imports_neither_torch_nor_ray(tmp_path: Path) -> None:
    score_run(tmp_path)
    code = (
        "import sys; from click.testing import CliRunner; from pipeline.cli import main; "
        "assert 'altair' not in sys.modules; "
        "assert CliRunner().invoke(main, ['report', sys.argv[1]]).exit_code == 0; "
        "heavy = {'torch', 'ray', 'datasets', 'hydra', 'gpt2model'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_rows_that_are_shown_are_read_from_their_row_groups_alone(tmp_path: Path) -> None:
    texts: list[str | None] = [f"{row} " + "word " * 4000 for row in range(4000)]
    table = score_table(texts, [row + 1.0 for row in range(4000)], [None] * 4000)
    store = make_run(tmp_path, [table], {"text": "text"}, ["id", "text"], task="score")
    (part,) = [name for name in store.listing() if name.startswith("part-")]
    metadata = pq.read_metadata(tmp_path / part).metadata
    with pq.ParquetWriter(tmp_path / part, table.schema) as writer:  # as a worker does it: a row group for a group
        for start in range(0, 4000, 50):
            writer.write_table(table.slice(start, 50))
        writer.add_key_value_metadata(metadata)
    del table, texts
    held = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(held)
    pa.set_memory_pool(pool)
    try:
        tracemalloc.start()
        found(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(held)
    assert pool.max_memory() + peak < 20_000_000  # the texts are 80 MB


@pytest.mark.parametrize("seed", range(5))
def test_a_histogram_holds_every_value_once_in_bounded_memory(seed: int) -> None:
    random = np.random.default_rng(seed)
    batches = [random.lognormal(0, 3, 5000) * random.choice([1, -1, 1e12], 5000) for _ in range(6)]
    held = Histogram()
    for batch in batches:
        held.add(batch)
    values = np.concatenate(batches)
    bins = list(held)
    assert len(bins) <= MOST_BINS
    assert sum(count for _, count in bins) == len(values) == held.count
    for left, count in bins[:: len(bins) // 50]:
        assert count == ((values >= left) & (values < left + held.width)).sum()
    drawn = held.drawn()
    assert sum(bar.count for bar in drawn.bars) + drawn.below + drawn.above == len(values)
    assert abs((values < held.quantile(0.5)).mean() - 0.5) < 0.05 or held.width > 1e6


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1.0, 1e300], [-5.0, -5.0, 7.0], [0.25, 1.0], [1e-300, 2e-300]])
def test_the_bars_of_few_values_hold_them_all(values: list[float]) -> None:
    held = Histogram()
    held.add(np.array(values))
    drawn = held.drawn()
    assert sum(bar.count for bar in drawn.bars) + drawn.below + drawn.above == len(values)
    assert drawn.bars[0].start <= min(values)
    assert drawn.bars[-1].stop >= max(values)
    assert len(drawn.bars) <= 41


def test_values_far_from_the_others_leave_them_their_bars_and_are_counted_beside() -> None:
    held = Histogram()
    held.add(np.array([*np.linspace(0, 0.99, 1000), -1e12, 1e12, 1e15]))
    drawn = held.drawn()
    assert (drawn.below, drawn.above) == (1, 2)
    assert len(drawn.bars) > 15
    assert drawn.bars[-1].stop - drawn.bars[0].start < 1.2


def test_values_that_hardly_differ_are_one_bar() -> None:
    held = Histogram()
    held.add(np.array([0.99999997, 1.0, 1.00000003]))
    (bar,) = held.drawn().bars
    assert bar.start < 0.99999997 < 1.00000003 < bar.stop
    assert bar.count == 3


def test_whole_numbers_have_whole_bars() -> None:
    held = Histogram()
    held.add(np.array([0.0, 1.0, 1.0, 3.0]))
    assert [(bar.start, bar.stop, bar.count) for bar in held.drawn(whole=True).bars] == [
        (0, 1, 1),
        (1, 2, 2),
        (2, 3, 0),
        (3, 4, 1),
    ]


def test_perplexities_over_orders_of_magnitude_are_drawn_on_a_logarithmic_scale() -> None:
    numbers = Numbers("perplexity", "Perplexity", lambda array: np.asarray(array), logarithmic=True)
    numbers.add(pa.array([2.0, 20.0, 200.0, 2e7]), Address(0, 0))
    assert numbers.is_log
    numbers.add(pa.array([0.0]), Address(0, 4))
    assert not numbers.is_log


def test_labels_beyond_all_counting_stay_bounded_and_add_up() -> None:
    labels = Labels("label", "Labels", lambda array: array)
    for start in range(0, 60_000, 5_000):
        labels.add(pa.array([*(f"label {start + each}" for each in range(5_000)), *["often"] * 9]), Address(0, start))
    assert len(labels.counts) <= 20_000
    assert labels.counts["often"] == 108
    assert labels.counts.total() + labels.others == 60_108


def test_speed_over_time_follows_from_when_the_parts_came() -> None:
    points = [(0.0, 0), *((second, int(second) * 10) for second in np.linspace(1, 100, 100).tolist())]
    found = rates(points)
    assert found[0][0] == 0
    assert found[-1][1] == 100
    assert all(math.isclose(rate, 10) for _, _, rate in found)
    assert rates(points[:10]) == []


def test_a_long_context_is_shown_around_its_answer() -> None:
    context = "a" * 5000 + "Ann" + "b" * 5000
    blocks = blocks_of(
        "qa",
        {"question": Text("Who?", 4), "context": Text(context, len(context))},
        {"answer": Text("Ann", 3), "start": 5000, "end": 5003},
    )
    (marked,) = [each for each in blocks[1].segments if each.kind == "answer"]
    assert marked.text == "Ann"
    assert sum(len(each.text) for each in blocks[1].segments) < 1000
    assert blocks[1].rest == len(context) - 700


def test_every_kind_of_value_has_a_short_form() -> None:
    table = pa.table(
        {
            "dictionary": pa.array(["x"]).dictionary_encode(),
            "bytes": [b"\xff" * 50],
            "when": pa.array([2**62], pa.timestamp("ns")),
            "far": pa.array([2**62], pa.timestamp("s")),
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "nothing": pa.nulls(1),
            "nested": [[[{"a": ["x"]}]]],
            "half": pa.array([np.float16(1)], pa.float16()),
        }
    )
    values = {name: short_value(table[name][0]) for name in table.column_names}
    assert values["dictionary"] == Text("x", 1)
    assert values["nothing"] is None
    assert values["nested"] == [[{"a": [Text("x", 1)]}]]
    assert all(len(str(value)) < 400 for value in values.values())


def test_the_page_follows_the_readers_colours_and_width(tmp_path: Path) -> None:
    score_run(tmp_path)
    page = text_of(tmp_path)
    assert "prefers-color-scheme: dark" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert drawings
    for drawing in drawings:
        assert "#" not in "".join(re.findall(r'(?:fill|stroke)="([^"]*)"', drawing))
        assert 'viewBox="' in drawing
        assert 'width="' not in drawing.partition(">")[0]
