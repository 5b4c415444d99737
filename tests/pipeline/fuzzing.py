"""How many cases a fuzzing test tries, and from which seed: PIPELINE_FUZZ=1000, PIPELINE_SEED=7."""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CASES = int(os.environ.get("PIPELINE_FUZZ", "100"))
# The quick run is the same every time; a long one looks elsewhere each time, and prints where.
SEED = int(os.environ.get("PIPELINE_SEED") or ("0" if "PIPELINE_FUZZ" not in os.environ else random.randrange(2**32)))


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """A guard against hangs; wide enough to say nothing of speed."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
