"""A Ray head with its job server."""

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator

from tests.pipeline.ray_head import free_ports, ray_head

PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)


@contextlib.contextmanager
def job_server(num_cpus: int) -> Iterator[tuple[str, int]]:
    """The job server's URL, and the port at which Ray's own protocol is spoken."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += [f"--num-cpus={num_cpus}", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    with ray_head(lambda: _serves(url), *options, "--object-store-memory=100000000"):
        yield url, ports["port"]


def _serves(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2).close()
    except urllib.error.HTTPError:  # it asks for its token
        return True
    except OSError:
        return False
    return True
