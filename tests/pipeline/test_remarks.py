"""What a model warns of, on its way to whoever runs the job."""

import logging
from collections.abc import Iterator

import pytest

from pipeline.remarks import Remarks


@pytest.fixture
def remarks() -> Iterator[tuple[logging.Logger, Remarks]]:
    """A logger of the model's and what hears it."""
    logger, heard = logging.getLogger("gpt2model.somewhere"), Remarks()
    logging.getLogger("gpt2model").addHandler(heard)
    yield logger, heard
    logging.getLogger("gpt2model").removeHandler(heard)


def test_each_warning_is_told_once_on_one_line_and_without_secrets(
    remarks: tuple[logging.Logger, Remarks],
) -> None:
    logger, heard = remarks
    for _ in range(2):
        logger.warning("no graphs:\n  %s", "s3://key:hunter2@bucket/x")
        logger.error("worse")
    logger.info("all is well")
    told = heard.so_far()
    assert told[1:] == ("worse",)
    assert told[0].startswith("no graphs: s3://")
    assert "hunter2" not in told[0]


def test_a_warning_stays_in_the_worker_s_own_log(
    remarks: tuple[logging.Logger, Remarks], monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    last = logging.Handler()
    monkeypatch.setattr(last, "emit", lambda record: logged.append(record.getMessage()))
    monkeypatch.setattr(logging, "lastResort", last)
    monkeypatch.setattr(logging.root, "handlers", [])
    remarks[0].warning("once")
    assert logged == ["once"]
    monkeypatch.setattr(logging.root, "handlers", [last])
    remarks[0].warning("by the root's handler alone")
    assert logged == ["once", "by the root's handler alone"]


def test_a_warning_that_cannot_be_put_into_words_ends_nothing(
    remarks: tuple[logging.Logger, Remarks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's own raise
    remarks[0].warning("%d rows", "some")
    assert remarks[1].so_far() == ()
