"""Overlapped stages keep order, pass errors on, and leave no thread behind."""

import threading
from collections.abc import Iterator

import pytest

from pipeline.overlap import Ahead


def test_items_come_in_order_and_all() -> None:
    assert list(Ahead(range(1000), depth=3)) == list(range(1000))


def test_what_the_source_raises_is_raised_to_the_consumer_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("here")

    seen = []
    with pytest.raises(ZeroDivisionError, match="here"):
        for item in Ahead(items(), depth=2):
            seen.append(item)
    assert seen == [1]


def test_the_source_is_never_more_than_depth_and_one_ahead() -> None:
    begun = []

    def items() -> Iterator[int]:
        for item in range(100):
            begun.append(item)
            yield item

    for taken, _ in enumerate(Ahead(items(), depth=2)):
        assert len(begun) <= taken + 1 + 2 + 1 + 1


def test_work_begins_before_the_first_item_is_asked_for() -> None:
    begun = threading.Event()

    def items() -> Iterator[int]:
        begun.set()
        yield 0

    stage = Ahead(items(), depth=1)
    assert begun.wait(timeout=30)
    stage.close()


def test_closing_early_closes_the_source_and_ends_its_thread() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    stage = Ahead(items(), depth=1)
    assert next(iter(stage)) == 0
    stage.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
