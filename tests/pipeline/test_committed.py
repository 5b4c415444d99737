"""Which files of a folder are parts of its run, as plan.json alone tells."""

from pathlib import Path
from typing import Any

from pyarrow import fs

from pipeline.committed import committed_parts

PRINT = "0123456789abcdef"


def names(*given: str, **plan: Any) -> list[str]:
    listing = {name: fs.FileInfo(f"out/{name}", fs.FileType.File, size=1) for name in given}
    return [info.base_name for info in committed_parts(listing, {"fingerprint": PRINT, **plan})]


def test_parts_come_in_the_order_of_their_numbers() -> None:
    parts = [f"part-{number:05d}-{PRINT[:10]}.parquet" for number in (99_999, 7, 100_000, 12)]
    assert names(*parts) == [parts[1], parts[3], parts[0], parts[2]]
    pieces = [f"part-{shard:05d}-{piece:05d}-{PRINT[:10]}.parquet" for shard, piece in ((1, 0), (0, 100_000), (0, 9))]
    assert names(*pieces) == pieces[::-1]


def test_what_is_not_of_this_run_is_left_out(tmp_path: Path) -> None:
    strangers = ("part-00000-0000000000.parquet", f"part-00000-{PRINT[:10]}.parquet.tmp", "_pipeline", "notes.txt")
    assert names(*strangers) == []


def test_parts_of_a_retired_split_are_not_the_runs_any_more() -> None:
    parts = [f"part-{number:05d}-{PRINT[:10]}.parquet" for number in range(6)]
    splits = [{"rows": 11}, {"rows": 0, "retired": True}, {"rows": 20, "retired": True}, {"rows": 20, "retired": False}]
    assert names(*parts, splits=splits, rows_per_part=10) == [*parts[:2], *parts[4:]]
