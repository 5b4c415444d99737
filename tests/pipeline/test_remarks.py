"""What a model warns of, on its way to whoever runs the job."""

import logging

import pytest

from pipeline.compose import load_job
from pipeline.preflight import prepare
from pipeline.remarks import Remarks, of_this_process
from pipeline.worker import Worker
from tests.pipeline.conftest import JobWriter


@pytest.fixture
def remarks() -> tuple[logging.Logger, Remarks]:
    """A logger that nothing else in this process hears below the root, and what hears it."""
    logger, heard = logging.Logger("model"), Remarks()
    logger.parent = logging.root
    logger.addHandler(heard)
    return logger, heard


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


def test_all_the_workers_of_a_process_hear_its_models_by_one_handler(write_job: JobWriter) -> None:
    spec = prepare(load_job(write_job())).spec
    for _ in range(2):
        Worker(spec).start()
    assert [each for each in logging.getLogger("gpt2model").handlers if isinstance(each, Remarks)] == [
        of_this_process()
    ]
