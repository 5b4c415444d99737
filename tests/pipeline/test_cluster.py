"""A local Ray that a busy machine is too slow to start is started again, a few times."""

import pytest
import ray

from pipeline.cluster import START_ATTEMPTS, connected
from pipeline.errors import PipelineError
from pipeline.job import ClusterOptions

SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed")


class Started(Exception):
    """Ends the test where Ray would have been started."""


class Init:
    """Stands in for ray.init: too slow for so many times."""

    def __init__(self, slow: int) -> None:
        self.slow, self.calls = slow, 0

    def __call__(self, *arguments: object, **options: object) -> None:
        self.calls += 1
        raise SLOW if self.calls <= self.slow else Started


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Init(slow=START_ATTEMPTS - 1)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Started), connected(ClusterOptions()):
        pass
    assert init.calls == START_ATTEMPTS


def test_a_machine_that_never_starts_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Init(slow=START_ATTEMPTS)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(PipelineError, match=r"3 times: this machine is overloaded"), connected(ClusterOptions()):
        pass
    assert init.calls == START_ATTEMPTS
