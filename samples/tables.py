"""The sample tables: `reviews.parquet` and `questions.jsonl`."""

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from corpus import documents, forks, long_review

HELD_OUT = "held-out"
NUM_REVIEWS = 400
NUM_FORKS = 30
ROWS_PER_GROUP = 150
LONG_UPDATES = 16
FIRST_ID = 1000

REVIEWS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("topic", pa.string()),
        pa.field("rating", pa.int8()),
        pa.field("lang", pa.string()),
        pa.field("published", pa.timestamp("ms", tz="UTC")),
    ]
)

# Rows that a grammar would not write and that real tables hold: row number -> what differs from the generated row.
ODD_ROWS: dict[int, dict[str, Any]] = {
    17: {"text": ""},
    101: {"text": "Lovely.", "topic": "restaurant", "rating": 5},
    166: {
        "text": "Très jolie petite théière 🫖, très bien faite… Merci à Zoë & Søren, à bientôt! ❤️👨‍👩‍👧‍👦",
        "topic": "kitchen",
        "rating": 5,
        "lang": "fr",
    },
    203: {"text": "  The soup was cold.\n\n\tThe waiter was colder. \n", "topic": "restaurant", "rating": 2},
    310: {"text": "!!!!! 10/10 !!!!! BEST KETTLE EVER !!!!!", "topic": "kitchen", "rating": 5},
}
LONG_ROW = 42


def review_rows() -> list[dict[str, Any]]:
    """The rows of `reviews.parquet`: the held-out split, with an oddity here and there."""
    rng = random.Random("published")
    start = datetime(2025, 1, 1, tzinfo=UTC)
    told = list(documents(HELD_OUT, NUM_REVIEWS))
    told[LONG_ROW] = long_review(HELD_OUT, LONG_UPDATES)
    return [
        {
            "id": FIRST_ID + number,
            "text": document.text,
            "topic": document.topic,
            "rating": document.rating,
            "lang": "en",
            "published": start + timedelta(seconds=rng.randrange(500 * 24 * 3600)),
            **ODD_ROWS.get(number, {}),
        }
        for number, document in enumerate(told)
    ]


def question_rows() -> list[dict[str, Any]]:
    """The rows of `questions.jsonl`: each fork twice, with the right completion and with the wrong one."""
    return [
        {"pair": pair, "kind": fork.kind, "prompt": fork.prompt, "completion": completion, "is_true": is_true}
        for pair, fork in enumerate(forks(HELD_OUT, NUM_FORKS))
        for completion, is_true in ((fork.right, True), (fork.wrong, False))
    ]


def write_reviews(path: Path) -> None:
    table = pa.Table.from_pylist(review_rows(), schema=REVIEWS_SCHEMA)
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd")


def write_questions(path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in question_rows()]
    path.write_text("".join(lines), encoding="utf-8")
