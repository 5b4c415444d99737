"""Stages that overlap: an iterator that is driven by a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _End:
    """The last thing in the queue, with the error that ended the iteration, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Ahead(Generic[Item]):
    """Iterates over `items`, computed by another thread at most `depth` ahead, from the moment it is made.

    What `items` raises is raised to the consumer, after the items before it. `close` ends the thread at its next item.
    """

    def __init__(self, items: Iterable[Item], depth: int) -> None:
        self._ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while not isinstance(item := self._ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    def close(self) -> None:
        """End the thread, and close `items` where it is a generator."""
        self._closed.set()
        self._thread.join()

    def _work(self, items: Iterable[Item]) -> None:
        error: BaseException | None = None
        iterator = iter(items)
        try:
            for item in iterator:
                if not self._put(item):
                    return
        except BaseException as raised:  # handed to the consumer, whatever it is
            error = raised
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
