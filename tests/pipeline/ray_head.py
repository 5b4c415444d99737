"""A Ray head in processes, ports and a folder of its own, which asks for a token."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

SECONDS = 120


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, each another."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def answers(address: str) -> bool:
    """Whether somebody listens at a host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def ray_head(ready: Callable[[], bool], *options: str, **environment: str) -> Iterator[None]:
    """Inside, a head that was started with such options runs and is `ready`; its token stands in the environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        for name, value in {**token, **environment}.items():
            patch.setenv(name, value)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        reset_auth_token_state()  # Ray keeps the token that it read first, which another test may have had it read
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--head",
                "--block",
                f"--temp-dir={folder}",
                *options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": path},
            start_new_session=True,
        )
        try:
            _wait(process, ready)
            yield
        finally:
            _kill(process)
    reset_auth_token_state()


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < end, "the head does not answer"
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the head ended with {process.wait(timeout=0.2)}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """All at once: Ray's own end of a head takes half a minute."""
    children = psutil.Process(process.pid).children(recursive=True)
    for each in [process, *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(children, timeout=SECONDS)
