"""An S3 API on the loopback that fails on request: a proxy before moto's server, with faults by rule from a seed."""

from __future__ import annotations

import http.client
import logging
import random
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self, get_args

from moto.server import ThreadedMotoServer
from pyarrow import fs

Kind = Literal[
    "500",
    "503",
    "403",
    "404",
    "delay",
    "reset_request",
    "reset_response",
    "truncated_upload",
    "truncated_download",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
TRANSIENT: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in ("403", "404"))
"""Kinds that go away when the request is made again."""
ANSWERS = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied", "404": "NoSuchBucket"}


@dataclass(frozen=True, slots=True)
class Request:
    """One request that came, and the fault that it met."""

    method: str
    path: str
    """With the query, as it came."""
    fault: Kind | None


@dataclass(slots=True)
class _Rule:
    kinds: tuple[Kind, ...]
    probability: float
    method: str | None
    path: re.Pattern[str]
    skip: int
    times: int | None
    seen: int = field(default=0)
    done: int = field(default=0)

    def draw(self, chance: random.Random, method: str, path: str) -> Kind | None:
        if (self.method and method != self.method) or not self.path.search(path):
            return None
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.done >= self.times):
            return None
        if chance.random() >= self.probability:
            return None
        self.done += 1
        return chance.choice(self.kinds)


class FaultyS3:
    """A server with one bucket, named `bucket`; use as a context manager."""

    def __init__(self, seed: int = 0, delay_seconds: float = 0.2) -> None:
        self.delay_seconds = delay_seconds
        self.log: list[Request] = []
        self._chance = random.Random(seed)
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line on stderr for every request
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self._proxy = _Proxy(self, self._moto.get_host_and_port()[1])
        threading.Thread(target=self._proxy.serve_forever, name="faulty-s3", daemon=True).start()
        filesystem, path = fs.FileSystem.from_uri(self.uri())
        filesystem.create_dir(path)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    @property
    def port(self) -> int:
        return int(self._proxy.server_address[1])

    def uri(self, path: str = "", bucket: str = "bucket") -> str:
        """The URI of a place in the bucket, through the proxy."""
        query = f"endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        return f"s3://user:key@{bucket}/{path.strip('/')}".rstrip("/") + f"?{query}"

    def inject(
        self,
        probability: float = 1.0,
        kinds: tuple[Kind, ...] = TRANSIENT,
        method: str | None = None,
        path: str = "",
        skip: int = 0,
        times: int | None = None,
    ) -> None:
        """Add a rule: of the requests with this method whose path matches, after `skip` of them, at most `times` fail.

        `path` is a regular expression that is searched for in path and query. The first rule that strikes counts.
        """
        with self._lock:
            self._rules.append(_Rule(kinds, probability, method, re.compile(path), skip, times))

    def calm(self) -> None:
        """Take all rules away."""
        with self._lock:
            self._rules.clear()

    @property
    def faults(self) -> list[Request]:
        """The requests that failed."""
        with self._lock:
            return [each for each in self.log if each.fault]

    def unfinished_uploads(self) -> list[str]:
        """Keys of multipart uploads that were begun and neither completed nor aborted."""
        connection = http.client.HTTPConnection("127.0.0.1", self._proxy.behind, timeout=30)
        connection.request("GET", "/bucket?uploads")
        found = re.findall(r"<Key>(.*?)</Key>", connection.getresponse().read().decode())
        connection.close()
        return found

    def meet(self, method: str, path: str) -> Kind | None:
        """Note a request, and say what befalls it."""
        with self._lock:
            drawn = (rule.draw(self._chance, method, path) for rule in self._rules)
            fault = next((each for each in drawn if each), None)
            self.log.append(Request(method, path, fault))
            return fault

    def pause(self) -> None:
        """Let `delay_seconds` pass, or less where the server stops meanwhile."""
        self._stopped.wait(self.delay_seconds)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, faulty: FaultyS3, behind: int) -> None:
        self.faulty, self.behind = faulty, behind
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def _serve(self) -> None:
        fault = self.server.faulty.meet(self.command, self.path)
        if fault == "truncated_upload" and int(self.headers.get("Content-Length", 0)) > 1:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            return self._reset()
        if fault in ("reset_request", "truncated_upload"):
            return self._reset()
        body = self._body()
        if fault in ANSWERS:
            return self._refuse(int(fault), ANSWERS[fault])
        if fault == "delay":
            self.server.faulty.pause()
        answer, content = self._forward(body)
        if fault == "reset_response" or (fault == "truncated_download" and len(content) < 2):
            return self._reset()
        self._reply(answer, content, len(content) // 2 if fault == "truncated_download" else len(content))
        if fault == "truncated_download":
            self._reset()
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        left_out = ("connection", "expect", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def _reply(self, answer: http.client.HTTPResponse, content: bytes, sent: int) -> None:
        self.send_response_only(answer.status, answer.reason)
        held = dict(answer.getheaders())
        length = held.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        for name, value in held.items():
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[:sent])

    def _refuse(self, status: int, code: str) -> None:
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()
        self.send_response_only(status, code)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        """Close with RST, so that the client sees a broken connection and no orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is `FaultyS3.log`."""
