"""Wild Parquet goes through a worker with every column as it was read, or is refused or fails by name."""

import datetime
import decimal
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.compose import load_job
from pipeline.errors import JobError, PipelineError, SourceError
from pipeline.preflight import prepare
from pipeline.run import run_job
from pipeline.sources.parquet import ParquetSource
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter

Carry = Callable[..., pa.Table]


@pytest.fixture
def carry(write_job: JobWriter, tmp_path: Path) -> Carry:
    """Runs a job over `parquet` in a worker without Ray, and reads what it wrote."""

    def carried(parquet: Path | list[str], *overrides: str, set_aside: Mapping[int, str] | None = None) -> pa.Table:
        out = tmp_path / "carried"
        shutil.rmtree(out, ignore_errors=True)
        names = [str(parquet)] if isinstance(parquet, Path) else parquet
        job = load_job(write_job(input={"parquet": names}, output={"path": str(out)}), overrides)
        prepared = prepare(job)
        prepared.store.create()
        worker = Worker(prepared.spec)
        worker.start()
        for part in prepared.plan.parts():
            worker.run(replace(part, set_aside=set_aside or {}))
        return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("part-*"))])

    return carried


def refused(write_job: JobWriter, parquet: Path | list[str], *wanted: str) -> None:
    names = [str(parquet)] if isinstance(parquet, Path) else parquet
    result = CliRunner().invoke(main, ["plan", str(write_job(input={"parquet": names}))])
    assert result.exit_code == 2, result.output
    assert all(each in result.stderr for each in wanted), result.stderr
    assert "Traceback" not in result.stderr


def kept(found: pa.Table, given: pa.Table) -> bool:
    """Whether every column of the input is in the output, type, values and nulls."""
    return bool(found.select(given.column_names).equals(given))


WHEN = [pa.array([0, None, -5], pa.timestamp(unit, tz)) for unit in "ms us ns".split() for tz in (None, "Asia/Tokyo")]
COLUMNS: dict[str, pa.Array] = {
    **{f"timestamp {each.type}": each for each in WHEN},
    "date": pa.array([datetime.date(1, 1, 1), None, datetime.date(9999, 12, 31)]),
    "time ms": pa.array([1, None, 2], pa.time32("ms")),
    "time ns": pa.array([1, None, 2], pa.time64("ns")),
    "duration": pa.array([1, None, -2], pa.duration("us")),
    "decimal128": pa.array([decimal.Decimal("1.23"), None, decimal.Decimal(-9)], pa.decimal128(38, 2)),
    "decimal256": pa.array([decimal.Decimal("1.23"), None, decimal.Decimal(7)], pa.decimal256(76, 2)),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float16": pa.array([np.float16(1.5), None, np.float16("inf")], pa.float16()),
    "float": pa.array([float("inf"), None, 5e-324]),
    "binary": pa.array([b"\x00\xff", None, b""]),
    "fixed binary": pa.array([b"ab", None, b"\x00\x00"], pa.binary(2)),
    "large string": pa.array(["a", None, ""], pa.large_string()),
    "string view": pa.array(["a", None, "more than twelve bytes"], pa.string_view()),
    "binary view": pa.array([b"a", None, b"more than twelve bytes"], pa.binary_view()),
    "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
    "int8 dictionary": pa.array(["a", None, "b"]).cast(pa.dictionary(pa.int8(), pa.string())),
    "ordered categories": pa.DictionaryArray.from_arrays(pa.array([1, None, 0]), ["a", "b"], ordered=True),
    "null": pa.nulls(3),
    "struct": pa.array([{"a": 1, "b.c": None}, None, {"a": None, "b.c": "x"}]),
    "list of struct": pa.array([[{"a": 1}, None], None, []]),
    "map": pa.array([[("k", 1), ("l", None)], None, []], pa.map_(pa.string(), pa.int64())),
    "list of list": pa.array([[[1], None, []], None, []]),
    "large list": pa.array([["a"], None, []], pa.large_list(pa.string())),
    "list view": pa.array([["a"], None, []], pa.list_view(pa.string())),
    "fixed list": pa.array([[1, None], None, [3, 4]], pa.list_(pa.int16(), 2)),
    "list of dictionary": pa.ListArray.from_arrays([0, 1, 1, 2], pa.array(["a", "b"]).dictionary_encode()),
    "uuid": pa.array([b"a" * 16, None, b"b" * 16], pa.uuid()),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None, "[]"])),
    "bool8": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8())),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2))
    ),
}


def test_columns_of_every_type_are_carried_through(carry: Carry, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, ""], **COLUMNS}), tmp_path / "wild.parquet", row_group_size=2)
    given = pq.read_table(tmp_path / "wild.parquet")
    found = carry(tmp_path / "wild.parquet")
    for name in given.column_names:
        assert kept(found, given.select([name])), name
    assert found.column("error").to_pylist() == [None, "text is null", None]


NARROWED = {
    "timestamp s": (pa.array([1, None], pa.timestamp("s")), "timestamp[ms]"),
    "date64": (pa.array([86_400_000, None], pa.date64()), "date32[day]"),
    "time s": (pa.array([1, None], pa.time32("s")), "time32[ms]"),
    "numbers in a dictionary": (pa.array([5, None]).dictionary_encode(), "int64"),
}


def test_types_that_parquet_has_not_are_carried_as_arrow_reads_them(carry: Carry, tmp_path: Path) -> None:
    columns = {name: column for name, (column, _) in NARROWED.items()}
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "wild.parquet")
    found = carry(tmp_path / "wild.parquet")
    assert {name: str(found.schema.field(name).type) for name in NARROWED} == {
        name: kind for name, (_, kind) in NARROWED.items()
    }
    assert kept(found, pq.read_table(tmp_path / "wild.parquet"))


TEXTS = [b"fine", b"\x00", b"\xef\xbb\xbfBOM", "😀".encode(), b"\xed\xa0\x80", b"\xff\xfe", b"", b"caf\xc3"]
KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


def as_text(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """Bytes as a column of text, valid or not."""
    text = pa.array(values, pa.binary()).view(pa.string())
    if pa.types.is_dictionary(kind):
        return text.dictionary_encode()
    return pa.array(values, pa.binary_view()).view(kind) if kind == pa.string_view() else text.cast(kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_bytes_that_are_no_text_are_that_rows_error_and_are_kept(
    carry: Carry, tmp_path: Path, kind: pa.DataType
) -> None:
    pq.write_table(pa.table({"text": as_text([*TEXTS, None], kind), "id": range(9)}), tmp_path / "wild.parquet")
    found = carry(tmp_path / "wild.parquet")
    assert kept(found, pq.read_table(tmp_path / "wild.parquet"))
    wrong = [None, None, None, None, *(f"text is not valid UTF-8 at byte {at}" for at in (0, 0)), None]
    assert found.column("error").to_pylist() == [*wrong, "text is not valid UTF-8 at byte 3", "text is null"]
    assert found.column("loglikelihood").is_valid().to_pylist() == [each == "None" for each in map(str, found["error"])]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_any_type_of_text_are_set_aside_and_kept(carry: Carry, tmp_path: Path, kind: pa.DataType) -> None:
    texts: list[bytes | None] = [b"one", b"more than twelve bytes of it", b"three", None, b"five", b"six of many bytes"]
    pq.write_table(pa.table({"text": as_text(texts, kind)}), tmp_path / "wild.parquet", row_group_size=4)
    deadly = dict.fromkeys((1, 3, 5), "this row takes its worker down")
    whole, found = carry(tmp_path / "wild.parquet"), carry(tmp_path / "wild.parquet", set_aside=deadly)
    assert kept(found, pq.read_table(tmp_path / "wild.parquet"))
    assert found.column("error").to_pylist() == [deadly.get(row) for row in range(6)]
    assert found.column("loglikelihood").is_null().to_pylist() == [row in deadly for row in range(6)]
    others = [row for row in range(6) if row not in deadly]
    assert [found.column("num_tokens")[row] for row in others] == [whole.column("num_tokens")[row] for row in others]


CELLS = st.one_of(
    st.none(), st.binary(max_size=30), st.text(max_size=30).map(lambda text: text.encode(errors="replace"))
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_table_is_carried_through_in_order(carry: Carry, tmp_path: Path, data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 30))
    names = data.draw(
        st.lists(st.sampled_from(["a", "a.b", "", " ", "ä", "error.x", "pipeline:row", "c"]), unique=True)
    )
    columns = [as_text(data.draw(st.lists(CELLS, min_size=rows, max_size=rows)), KINDS[0]) for _ in names]
    text = as_text(data.draw(st.lists(CELLS, min_size=rows, max_size=rows)), data.draw(st.sampled_from(KINDS)))
    table = pa.Table.from_arrays([*columns, text], names=[*names, "text"])
    size = data.draw(st.integers(1, 9))
    pq.write_table(table, tmp_path / "wild.parquet", row_group_size=size)
    found = carry(tmp_path / "wild.parquet", f"output.rows_per_part={data.draw(st.integers(1, 40))}")
    assert found.num_rows == rows
    assert kept(found, pq.read_table(tmp_path / "wild.parquet"))


def test_a_cell_of_ten_megabytes_is_scored_beside_small_ones(carry: Carry, tmp_path: Path) -> None:
    table = pa.table({"text": ["a", None, "b"], "blob": [b"", b"x" * 10_000_000, None]})
    pq.write_table(table, tmp_path / "wild.parquet")
    assert kept(carry(tmp_path / "wild.parquet"), table)


NAMED = pa.table(
    {"a.b": ["1"], "a": ["2"], "a.b.c": ["3"], "": ["4"], "größe 😀": ["5"], "pipeline:row": ["6"], "text": ["x"]}
)


@pytest.mark.parametrize("columns", [["a"], ["a.b"], ["", "a.b.c", "a"], ["pipeline:row", "größe 😀"], None])
def test_columns_with_odd_names_keep_their_values(carry: Carry, tmp_path: Path, columns: list[str] | None) -> None:
    pq.write_table(NAMED, tmp_path / "wild.parquet")
    listed = ",".join(f"'{name}'" for name in columns or [])
    found = carry(tmp_path / "wild.parquet", *([f"output.columns=[{listed}]"] if columns else []))
    assert kept(found, NAMED.select(columns or NAMED.column_names))
    assert found.num_columns == len(columns or NAMED.column_names) + 5


@pytest.mark.parametrize("name", ["error", "loglikelihood", "num_tokens"])
def test_a_column_named_as_a_result_is_refused(write_job: JobWriter, tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"text": ["a"], name: ["mine"]}), tmp_path / "wild.parquet")
    refused(write_job, tmp_path / "wild.parquet", f"has a column '{name}' already", "output.prefix=score_")


def test_files_without_rows_and_row_groups_without_rows_add_nothing(carry: Carry, tmp_path: Path) -> None:
    (tmp_path / "wild").mkdir()
    table = pa.table({"text": ["a", "b"]})
    pq.write_table(table.slice(0, 0), tmp_path / "wild" / "a.parquet")
    pq.write_table(pa.table({"text": pa.nulls(0)}), tmp_path / "wild" / "b.parquet")
    with pq.ParquetWriter(tmp_path / "wild" / "c.parquet", table.schema) as writer:
        for piece in (table.slice(0, 0), table.slice(0, 1), table.slice(0, 0), table.slice(1), table.slice(0, 0)):
            writer.write_table(piece)
    pq.write_table(pa.table({}), tmp_path / "wild" / "d.parquet")
    assert kept(carry(tmp_path / "wild"), table)


def test_a_file_without_columns_is_refused(write_job: JobWriter, tmp_path: Path) -> None:
    pq.write_table(pa.table({}), tmp_path / "wild.parquet")
    refused(write_job, tmp_path / "wild.parquet", "'text', which the input lacks")


WRITERS: list[dict[str, Any]] = [
    *({"compression": each} for each in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")),
    {"data_page_version": "2.0", "write_page_checksum": True},
    {"version": "1.0", "use_deprecated_int96_timestamps": True},
    {"store_schema": False, "use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
    {"use_byte_stream_split": ["x"], "use_dictionary": False, "write_page_index": True},
]


def test_files_of_every_writers_habits_are_carried_through(carry: Carry, tmp_path: Path) -> None:
    for number, options in enumerate(WRITERS):
        columns: dict[str, Any] = {"text": ["a", None, "b"]}
        if "use_byte_stream_split" in options:
            columns["x"] = [1.0, None, 2.0]
        if "use_deprecated_int96_timestamps" in options:
            columns["when"] = pa.array([1, None, 3], pa.timestamp("ns"))
        table = pa.table(columns)
        file = tmp_path / f"{number}.parquet"
        pq.write_table(table, file, **options)
        assert kept(carry(file), table), options


def test_two_thousand_small_files_are_one_table(write_job: JobWriter, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    pq.write_table(pa.table({"text": ["a"], "id": [7]}), tmp_path / "one.parquet")
    for number in range(2000):
        os.link(tmp_path / "one.parquet", tmp_path / "many" / f"{number:04}.parquet")
    names = [str(file) for file in sorted((tmp_path / "many").iterdir())]
    source = ParquetSource(names)
    read = [batch for split in source.splits() for batch in source.read(split, 0, 1, ["id"])]
    assert pa.Table.from_batches(read).column("id").to_pylist() == [7] * 2000


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    rows = 300_000
    texts = [
        number.to_bytes(8, "little").hex() * 4
        for number in np.random.default_rng(0).integers(2**62, size=rows).tolist()
    ]
    pq.write_table(pa.table({"text": texts}), tmp_path / "wide.parquet", row_group_size=rows, use_dictionary=False)
    del texts
    size = pq.read_metadata(tmp_path / "wide.parquet").row_group(0).total_byte_size
    source = ParquetSource(str(tmp_path / "wide.parquet"))
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in source.read(source.splits()[0], 0, rows, ["text"]):
        most, count = max(most, pa.total_allocated_bytes() - before), count + batch.num_rows
    assert count == rows
    assert size > 18_000_000
    assert most < 9_000_000


BROKEN = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[:-20],
    "text": lambda whole: b"id,text\n1,a\n" * 50,
    "only magic": lambda whole: b"PAR1PAR1",
    "footer of another length": lambda whole: whole[:-8] + (2**31 - 1).to_bytes(4, "little") + b"PAR1",
    "footer of zeros": lambda whole: whole[:-8] + bytes(60) + (60).to_bytes(4, "little") + b"PAR1",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_file_is_refused_by_name(write_job: JobWriter, tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": ["a"] * 100}), tmp_path / "wild.parquet")
    (tmp_path / "wild.parquet").write_bytes(BROKEN[kind]((tmp_path / "wild.parquet").read_bytes()))
    refused(write_job, tmp_path / "wild.parquet", "wild.parquet is not a whole Parquet file", "leave it out")


DRIFT = {
    "more": (pa.table({"text": ["b"], "more": [1]}), "column 'more' is missing in one and int64 in the other"),
    "type": (pa.table({"text": pa.array(["b"], pa.large_string())}), "column 'text' is string in one and large_string"),
    "order": (None, "their columns stand in another order"),
}


@pytest.mark.parametrize("kind", DRIFT)
def test_a_schema_that_drifts_is_refused_with_the_column(write_job: JobWriter, tmp_path: Path, kind: str) -> None:
    (tmp_path / "wild").mkdir()
    other, message = DRIFT[kind]
    first = pa.table({"text": ["a"]}) if other is not None else pa.table({"text": ["a"], "id": [1]})
    pq.write_table(first, tmp_path / "wild" / "a.parquet")
    pq.write_table(other if other is not None else first.select(["id", "text"]), tmp_path / "wild" / "b.parquet")
    refused(write_job, tmp_path / "wild", "a.parquet and ", "b.parquet differ: ", message)


def test_files_that_differ_in_metadata_and_nullability_alone_are_one_table(carry: Carry, tmp_path: Path) -> None:
    (tmp_path / "wild").mkdir()
    strict = pa.schema([pa.field("text", pa.string(), nullable=False, metadata={"k": "v"})], metadata={"pandas": "{"})
    pq.write_table(pa.table({"text": ["a"]}, schema=strict), tmp_path / "wild" / "a.parquet")
    pq.write_table(pa.table({"text": [None, "b"]}), tmp_path / "wild" / "b.parquet")
    assert carry(tmp_path / "wild").column("text").to_pylist() == ["a", None, "b"]


def test_folders_links_and_pipes_are_what_they_are(carry: Carry, write_job: JobWriter, tmp_path: Path) -> None:
    folder = tmp_path / "wild"
    (folder / "x.parquet").mkdir(parents=True)
    pq.write_table(pa.table({"text": ["a"]}), folder / "x.parquet" / "y.parquet")
    (folder / "link.parquet").symlink_to(folder / "x.parquet" / "y.parquet")
    (folder / "gone.parquet").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.parquet")
    assert carry(folder).num_rows == 2
    refused(write_job, folder / "pipe.parquet", "input.parquet", "pipe.parquet")
    refused(write_job, folder / "gone.parquet", "no such file")


def test_a_file_that_goes_between_plan_and_read_fails_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "wild.parquet")
    source = ParquetSource(str(tmp_path / "wild.parquet"))
    (split,) = source.splits()
    (tmp_path / "wild.parquet").unlink()
    with pytest.raises(SourceError, match=r"wild\.parquet changed since the plan .*now None"):
        list(source.read(split, 0, 1, ["text"]))


def flipped(file: Path) -> None:
    """A file whose first page has one wrong bit, and a checksum that knows."""
    table = pa.table({"text": [f"row {row}" for row in range(100)]})
    pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(file.read_bytes())
    content[content.index(b"row 50")] ^= 1
    file.write_bytes(content)


@pytest.mark.usefixtures("ray_local")
def test_a_flipped_bit_fails_its_split_by_name_and_the_others_finish(write_job: JobWriter, tmp_path: Path) -> None:
    folder = tmp_path / "wild"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"] * 10}), folder / "a.parquet")
    flipped(folder / "b.parquet")
    pq.write_table(pa.table({"text": ["c"] * 10}), folder / "c.parquet")
    with pytest.raises(
        PipelineError, match=r"1 part failed(?s:.*)b\.parquet can't be read at rows 0 to 100: .*(CRC|checksum)"
    ):
        run_job(load_job(write_job(input={"parquet": str(folder)})))
    assert sum(pq.read_metadata(file).num_rows for file in (tmp_path / "out").glob("part-*")) == 20


def test_an_encrypted_file_is_refused_by_name(write_job: JobWriter, tmp_path: Path) -> None:
    import pyarrow.parquet.encryption as pe

    class Kms(pe.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            return key_bytes.hex()

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            return bytes.fromhex(wrapped_key)

    table = pa.table({"text": ["a"]})
    factory = pe.CryptoFactory(lambda _: Kms())
    options = pe.EncryptionConfiguration(footer_key="f", column_keys={"c": ["text"]}, double_wrapping=False)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), options)
    with pq.ParquetWriter(tmp_path / "wild.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    refused(write_job, tmp_path / "wild.parquet", "wild.parquet is not a whole Parquet file", "encrypt")


NOWHERE = ["", "\0", "a\0b", "~nobody/x", "[", "[z-a].parquet", "**x", "://", "file://", "x::y://z"]


@pytest.mark.parametrize("name", NOWHERE)
def test_what_is_no_path_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"input\.parquet"):
        ParquetSource(name).splits()


def test_an_empty_list_of_files_is_refused(write_job: JobWriter) -> None:
    refused(write_job, [], "input.parquet is an empty list")
