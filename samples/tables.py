"""The sample tables: `reviews.parquet`, `questions.jsonl`, `quiz.parquet` and `choices.parquet`."""

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from corpus import Fork, documents, forks, long_review
from quiz import ask

HELD_OUT = "held-out"
NUM_REVIEWS = 400
NUM_FORKS = 30
NUM_QUIZ = 100
NUM_CHOICES = 60
ROWS_PER_GROUP = 150
LONG_UPDATES = 16
FIRST_ID = 1000
FIRST_QUIZ_ID = 2000
FIRST_CHOICES_ID = 3000

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

QUIZ_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("question", pa.string()),
        pa.field("context", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("start", pa.int32()),
    ]
)
CHOICES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("prompt", pa.string()),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("answer", pa.int32()),
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
        for completion, is_true in ((fork.right, True), (fork.wrong[0], False))
    ]


def quiz_rows() -> list[dict[str, Any]]:
    """The rows of `quiz.parquet`: one question about each of some held-out documents; null where it has no answer."""
    rng = random.Random("quiz")
    rows = list[dict[str, Any]]()
    for number, document in enumerate(documents(HELD_OUT, NUM_QUIZ)):
        question = ask(document, rng)
        name = question.answer
        row = {"id": FIRST_QUIZ_ID + number, "question": question.text, "context": document.text}
        answer = None if name is None else document.text[name.start : name.end]
        rows.append({**row, "answer": answer, "start": None if name is None else name.start})
    return rows


def choice_rows() -> list[dict[str, Any]]:
    """The rows of `choices.parquet`: forks that are not in `questions.jsonl`, with two, three and four ways in turn."""
    rng = random.Random("choices")
    told = list(forks(HELD_OUT, NUM_FORKS + NUM_CHOICES))[NUM_FORKS:]
    return [
        {"id": FIRST_CHOICES_ID + number, "prompt": fork.prompt, **_choices(fork, 2 + number // 2 % 3, rng)}
        for number, fork in enumerate(told)
    ]


def _choices(fork: Fork, count: int, rng: random.Random) -> dict[str, Any]:
    choices = rng.sample([fork.right, *fork.wrong[: count - 1]], count)
    return {"choices": choices, "answer": choices.index(fork.right)}


def write_reviews(path: Path) -> None:
    _write_table(path, review_rows(), REVIEWS_SCHEMA)


def write_questions(path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in question_rows()]
    path.write_text("".join(lines), encoding="utf-8")


def write_quiz(path: Path) -> None:
    _write_table(path, quiz_rows(), QUIZ_SCHEMA)


def write_choices(path: Path) -> None:
    _write_table(path, choice_rows(), CHOICES_SCHEMA)


def _write_table(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(
        pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=ROWS_PER_GROUP, compression="zstd"
    )
