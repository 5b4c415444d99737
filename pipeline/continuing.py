"""Many groups of rows continued together: while the last rows of one group end, those of the next are under way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline.batching import Item, Result
from pipeline.errors import WorkerBroken

if TYPE_CHECKING:
    from gpt2model.generation import Continuation, Engine, Request

GROUPS_AT_ONCE = 2
"""Groups of one part that are under way together; several parts may be."""


class _Order:
    """The requests of one group, and their answers so far."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = [replace(each, ticket=(self, place)) for place, each in enumerate(requests)]
        self.answers: list[Continuation | None] = [None] * len(requests)
        self.left = len(requests)

    def take(self, place: int, answer: Continuation) -> None:
        self.answers[place] = answer
        self.left -= 1


class EngineRunner:
    """Engines for the whole life of a worker, each with a thread of its own, that take requests from one queue.

    On a CPU there is an engine a core, which computes in that thread alone: threads that share a product wait for each
    other, the longer the busier the machine is.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._broken: BaseException | None = None
        self._closed = False
        self._groups = ThreadPoolExecutor(thread_name_prefix="group")
        self._threads = [
            threading.Thread(target=self._work, args=(engine,), name="engine", daemon=True) for engine in engines
        ]
        for thread in self._threads:
            thread.start()

    @property
    def tokens(self) -> int:
        """Tokens read and made since the start."""
        return sum(each.counts.prompt_tokens + each.counts.new_tokens for each in self._engines)

    def each(self, groups: Iterable[Item], compute: Callable[[Item], Result]) -> Generator[tuple[Item, Result]]:
        """The groups of one part in their order; the next is computed while the last rows of one are."""
        ahead: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for group in groups:
                ahead.append((group, self._groups.submit(compute, group)))
                if len(ahead) == GROUPS_AT_ONCE:
                    yield _finished(ahead)
            while ahead:
                yield _finished(ahead)
        finally:
            for _, future in ahead:
                future.cancel()

    def run(self, requests: Sequence[Request]) -> list[Continuation]:
        """Continue requests, beside those of other threads; the answers are in the requests' order."""
        order = _Order(requests)
        with self._changed:
            self._waiting += order.requests
            self._changed.notify_all()
            self._changed.wait_for(lambda: not order.left or self._broken is not None)
            if order.left:
                raise WorkerBroken(f"{type(self._broken).__name__}: {self._broken}") from self._broken
        answers = [answer for answer in order.answers if answer is not None]
        # Each answer leads to its order by its ticket: held in a circle, they would wait for the garbage collector.
        order.answers, order.requests = [], []
        return answers

    def close(self) -> None:
        """End the threads after the steps that they are in; whoever still waits for answers gets an error."""
        with self._changed:
            self._closed = True
            self._broken = self._broken or RuntimeError("it was closed")
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._groups.shutdown()

    def _work(self, engine: Engine) -> None:
        if engine.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            while self._submit_share(engine):
                answers = engine.step(more=bool(self._waiting))
                with self._changed:
                    for answer in answers:
                        order, place = answer.request.ticket
                        order.take(place, answer)
                    if answers:
                        self._changed.notify_all()
        except BaseException as error:  # whoever waits for answers is told, whatever it is
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _submit_share(self, engine: Engine) -> bool:
        """Give an engine so many requests that all engines have the same, as far as it has room; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: engine.unfinished or self._waiting or self._closed)
            if self._closed:
                return False
            total = len(self._waiting) + sum(each.unfinished for each in self._engines)
            fair = -(-total // len(self._engines)) - engine.unfinished
            count = min(engine.vacant, max(fair, 0), len(self._waiting))
            # Under the lock: what one has taken and not yet submitted, the others would not count.
            engine.submit([self._waiting.popleft() for _ in range(count)])
            return True


def _finished(ahead: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    group, future = ahead.popleft()
    return group, future.result()
