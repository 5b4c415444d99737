"""A Ray head with its job server, in processes, ports and a folder of its own."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)
SECONDS = 120


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, each another."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _serves(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2).close()
    except urllib.error.HTTPError:  # it asks for its token
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def job_server(num_cpus: int) -> Iterator[tuple[str, int]]:
    """The job server's URL, and the port at which Ray's own protocol is spoken.

    The head asks for a token, which stands in this process's environment as long as the head runs.
    """
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            patch.delenv(name, raising=False)
        reset_auth_token_state()  # Ray keeps the token that it read first, which another test may have had it read
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        options = [f"--num-cpus={num_cpus}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
        options += [f"--{name}={port}" for name, port in ports.items()]
        options += [f"--temp-dir={folder}", "--object-store-memory=100000000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": path},
            start_new_session=True,
        )
        try:
            _wait(process, url)
            yield url, ports["port"]
        finally:
            _kill(process)
    reset_auth_token_state()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """All at once: Ray's own end of a head takes half a minute where runs are under way."""
    children = psutil.Process(process.pid).children(recursive=True)
    for each in [process, *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
    psutil.wait_procs(children, timeout=SECONDS)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + SECONDS
    while not _serves(url):
        assert time.monotonic() < end, "the head's job server does not answer"
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"the head ended with {process.wait(timeout=0.2)}")
