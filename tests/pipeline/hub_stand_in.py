"""A stand-in for the Hugging Face Hub, as far as datasets go: plain LFS, or Xet's client without its server.

It keeps commits as the Hub does: immutable trees of paths, each a blob named by its SHA-256, and branches that point to
them. Faults are made by `fault`: called with the method and path before each answer, it may return a status to answer
with, block, or raise ConnectionAbortedError to hang up.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_plantedTokenThatNobodyMaySee"
Fault = Callable[[str, str], int | None]


@dataclass
class Repo:
    """One dataset repository."""

    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Commit -> path -> SHA-256."""
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def put(self, branch: str, tree: dict[str, str], message: str) -> str:
        commit = hashlib.sha1(json.dumps([self.messages, tree, message]).encode()).hexdigest()
        self.messages.append(message)
        self.commits[commit], self.branches[branch] = tree, commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class StandIn(ThreadingHTTPServer):
    """A Hub whose only user is `anna`; remembers what was asked, and the bytes of content that came in."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.blobs = dict[str, Repo](), dict[str, bytes]()
        self.asked, self.tokens = list[str](), set[str | None]()
        self.received, self.lock = list[int](), threading.Lock()
        self.fault: Fault = lambda method, path: None
        self.xet: Path | None = None
        """Where hf_xet itself keeps content, in place of a server: a folder that a scheme of its own names."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was hung up on, is nothing to tell of."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def keep(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.blobs[name] = data
        return name

    def xet_bytes(self) -> int:
        """Bytes of content that came in by Xet."""
        assert self.xet is not None
        return sum(file.stat().st_size for file in self.xet.rglob("default.*") if file.suffix != ".tagset")

    def make(self, name: str, private: bool = True, **files: str) -> Repo:
        repo = self.repos[name] = Repo(private)
        tree = {path: self.keep(text.encode()) for path, text in {".gitattributes": "", **files}.items()}
        repo.put("main", tree, "initial commit")
        return repo

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds, without .gitattributes."""
        repo = self.repos[name]
        tree = repo.commits[repo.branches[branch]]
        return {path: self.blobs[blob] for path, blob in sorted(tree.items()) if path != ".gitattributes"}


@contextmanager
def serving() -> Iterator[StandIn]:
    server = StandIn()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Answer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        try:
            body = self._body()
            status = self.server.fault(self.command, path)
            if status is not None:
                raise _Answer(status)
            self._reply(200, *self._answer(path, body))
        except _Answer as answer:
            headers = {"X-Error-Code": answer.code, "X-Error-Message": answer.message}
            self._reply(answer.status, b"{}", {name: value for name, value in headers.items() if value})
        except ConnectionAbortedError:
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        """The body and the headers of the answer."""
        if path.startswith("/blob/"):  # signed addresses: no token goes there
            return self._blob(path.removeprefix("/blob/"), body)
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Answer(401, message="Invalid credentials in Authorization header")
        if "/resolve/" in path:
            return self._file(path)
        return json.dumps(self._json(path, body)).encode(), {"Content-Type": "application/json"}

    def _blob(self, name: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        with self.server.lock:
            self.server.received.append(len(body))
        if self.server.keep(body) != name:
            raise _Answer(400, message="not what was announced")
        return b"", {}

    def _file(self, path: str) -> tuple[bytes, dict[str, str]]:
        name, _, rest = path.removeprefix("/datasets/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo, commit = self._found(name, unquote(revision))
        blob = repo.commits[commit].get(unquote(file))
        if blob is None:
            raise _Answer(404, "EntryNotFound")
        data = self.server.blobs[blob]
        headers = {"ETag": f'"{blob}"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(data))}
        wanted = self.headers.get("Range")
        if wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            data = data[int(first) : int(last or len(data)) + 1]
        return data, headers

    def _found(self, name: str, revision: str = "main") -> tuple[Repo, str]:
        repo = self.server.repos.get(name)
        if repo is None:
            raise _Answer(404, "RepoNotFound")
        commit = repo.resolve(revision)
        if commit is None:
            raise _Answer(404, "RevisionNotFound")
        return repo, commit

    def _json(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._upload(each) for each in json.loads(body)["objects"]]}
        owner, name, *rest = path.removeprefix("/api/datasets/").split("/")
        return self._dataset(f"{owner}/{name}", rest, body)

    def _create(self, wanted: dict[str, Any]) -> Any:
        if wanted["organization"] != "anna":
            raise _Answer(403, message="You don't have the rights to create a dataset under this namespace")
        name = f"anna/{wanted['name']}"
        if name in self.server.repos or wanted["name"] == "hidden":
            raise _Answer(409, message="You already created this dataset repo")
        self.server.make(name, private=wanted.get("private", wanted.get("visibility") == "private"))
        return {"url": f"{self.server.endpoint}/datasets/{name}"}

    def _upload(self, wanted: dict[str, Any]) -> Any:
        if wanted["oid"] in self.server.blobs:
            return wanted
        return {
            **wanted,
            "actions": {"upload": {"href": f"{self.server.endpoint}/blob/{wanted['oid']}?Signature=secret"}},
        }

    def _dataset(self, name: str, rest: list[str], body: bytes) -> Any:
        kind, revision, under = (*map(unquote, rest or ["revision", "main"]), "", "")[:3]
        if kind == "branch":
            repo, commit = self._found(name)
            if revision in repo.branches:
                raise _Answer(409)
            repo.branches[revision] = commit
            return {}
        repo, commit = self._found(name, revision)
        tree = repo.commits[commit]
        if kind == "preupload":
            return {"files": [self._mode(each["path"], tree) for each in json.loads(body)["files"]]}
        if kind == "commit":
            return self._commit(repo, name, revision, [json.loads(line) for line in body.splitlines()])
        if kind == "tree":
            return self._listing(tree, under, "recursive=true" in self.path.lower())
        if kind == "xet-write-token" and self.server.xet is not None:
            return {"accessToken": "x", "exp": int(time.time()) + 3600, "casUrl": f"local://{self.server.xet}"}
        if kind == "revision":
            siblings = [{"rfilename": path} for path in tree]
            return {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
        raise _Answer(404)

    def _mode(self, path: str, tree: dict[str, str]) -> Any:
        mode = "lfs" if path.endswith(".parquet") else "regular"
        ignored = path in self.server.blobs.get(tree.get(".gitignore", ""), b"").decode().split()
        return {"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": self._oid(path, tree)}

    def _oid(self, path: str, tree: dict[str, str]) -> str | None:
        if path not in tree or path.endswith(".parquet"):
            return tree.get(path)
        data = self.server.blobs[tree[path]]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def _commit(self, repo: Repo, name: str, branch: str, lines: list[dict[str, Any]]) -> Any:
        header, *operations = lines
        with self.server.lock:
            if header["value"].get("parentCommit") not in (None, repo.branches[branch]):
                raise _Answer(412, message="A commit has happened since. Please refresh and try again.")
            tree = dict(repo.commits[repo.branches[branch]])
            for each in operations:
                path = each["value"]["path"]
                if each["key"] == "deletedFile":
                    del tree[path]
                elif each["key"] == "lfsFile":
                    if self.server.xet is None and each["value"]["oid"] not in self.server.blobs:
                        raise _Answer(400, message="the content of an LFS file is missing")
                    tree[path] = each["value"]["oid"]
                else:
                    tree[path] = self.server.keep(base64.b64decode(each["value"]["content"]))
            commit = repo.put(branch, tree, header["value"]["summary"])
        return {"commitUrl": f"{self.server.endpoint}/datasets/{name}/commit/{commit}", "commitOid": commit}

    def _listing(self, tree: dict[str, str], under: str, recursive: bool) -> Any:
        inside = {path: path.removeprefix(f"{under}/" if under else "") for path in sorted(tree)}
        entries = []
        for path, rest in inside.items():
            if under and rest == path:
                continue
            if "/" not in rest or recursive:
                entries.append(self._entry(path, tree))
        folders = {str(parent) for path in tree for parent in PurePosixPath(path).parents} - {".", under}
        wanted = [each for each in folders if recursive or str(PurePosixPath(each).parent) == (under or ".")]
        return [*entries, *({"type": "directory", "path": each, "oid": "0" * 40, "size": 0} for each in wanted)]

    def _entry(self, path: str, tree: dict[str, str]) -> Any:
        data = self.server.blobs.get(tree[path], b"")  # what came in by Xet is not here
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": self._oid(path, tree)}
        if path.endswith(".parquet"):
            entry["lfs"] = {"oid": tree[path], "size": len(data), "pointerSize": 130}
        return entry

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
